"""The tests, a tree that mirrors `src/`. No test file imports another; what they share is in `helpers`."""

import pytest

pytest.register_assert_rewrite("tests.helpers")
