"""What every room uses: files, readers, statistics, progress, errors."""
