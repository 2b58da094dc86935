"""What the registry and the table of model types know, as Markdown."""

from __future__ import annotations

from collections import defaultdict

from sightline.plugin.branches.decoder import DECODERS
from sightline.plugin.calibration.files import shipped
from sightline.plugin.composition import exclusion, order_matters
from sightline.plugin.config import methods
from sightline.plugin.core.families.known import CHECKS, known_types, tried
from sightline.plugin.core.method import Registered
from sightline.plugin.core.registry import METHODS

KINDS = {  # a column of the support matrix -> what is checked of a type
    "gains on heads (`vhr`, `head_gain`, `faith`)": "gain",
    "attention moved (`pai`, `var`, `gift`, ...)": "reweight",
    "biases (`zerotuning`, `pasta`)": "bias",
    "decoders with a copy (`decore`, `vcd`, ...)": "decore",
}
FAMILIES = {  # model types that the support matrix names, as people call them
    "LLaVA": "llava",
    "LLaVA-OneVision": "llava_onevision",
    "Qwen2-VL": "qwen2_vl",
    "Qwen2.5-VL": "qwen2_5_vl",
    "Qwen3-VL": "qwen3_vl",
    "Qwen3.5": "qwen3_5",
    "InternVL": "internvl",
    "Idefics3": "idefics3",
    "SmolVLM": "smolvlm",
    "Gemma 3": "gemma3",
    "Gemma 4": "gemma4",
    "GLM-4V": "glm4v",
    "Mistral 3": "mistral3",
    "Kimi K2.5": "kimi_k25",
    "InstructBLIP": "instructblip",
    "PaliGemma": "paligemma",
    "Llama": "llama",
    "Qwen3": "qwen3",
    "Mistral": "mistral",
    "Mixtral": "mixtral",
    "Phi-3": "phi3",
    "OLMo 2": "olmo2",
    "DeepSeek-V3": "deepseek_v3",
    "gpt-oss": "gpt_oss",
    "Falcon-H1": "falcon_h1",
    "GPT-2": "gpt2",
}


def method_table() -> str:
    """Markdown table of every registered method: what it does, its source, cost and needs."""
    lines = ["| method | what it does | source | cost | needs from calibration |", "|---|---|---|---|---|"]
    for name, method in methods().items():
        needs = ", ".join(f"`{section}`" for section in method.needs) or "–"
        lines.append(f"| [`{name}`]({name}.md) | {method.summary} | {method.source} | {method.cost} | {needs} |")
    return "\n".join(lines)


def facts(method: type[Registered]) -> str:
    """Markdown: what a method is, where it comes from, what it costs and needs, and its settings."""
    needs = ", ".join(f"`{section}`" for section in method.needs) or "nothing"
    lines = [
        f"{method.kind.capitalize()} `{method.name}`: {method.summary}.",
        "",
        f"- Source: {method.source}",
        f"- Cost: {method.cost}",
        f"- Needs from the calibration: {needs}",
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in method.config.model_fields.items():
        default = "required" if field.is_required() else f"`{'null' if field.default is None else field.default}`"
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {default} | {meaning} |")
    return "\n".join(lines)


def types_counted() -> str:
    """How many model types work, in one sentence."""
    parts = []
    for reads, called in (("pictures", "image-text"), ("text", "text")):
        of = [one for one in known_types() if one.reads == reads]
        parts.append(f"{sum(one.works for one in of)} of the {len(of)} {called} types")
    return f"**{parts[0]} and {parts[1]} of transformers {tried()['transformers']} work**."


def support_matrix() -> str:
    """Markdown table: families of models, those of one answer in one row, by kind of method."""
    known = {(one.name, one.reads == "pictures"): one for one in known_types()}
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for label, name in FAMILIES.items():
        one = known.get((name, True)) or known[name, False]
        cells = ("yes" if one.results.get(check) == "ok" else "no" for check in KINDS.values())
        rows[(one.reads, *cells)].append(label)
    lines = ["| family | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    return "\n".join(
        [*lines, *(f"| {', '.join(names)} | {' | '.join(cells)} |" for (_, *cells), names in rows.items())]
    )


def models_page() -> str:
    """Markdown page: every model type that was tried, what works on it, and what is refused and why."""
    lines = [
        "# Model types",
        "",
        "Written by `make docs` from `src/plugin/core/families/known.json`, which `python -m tests.zoo.survey` and `python -m tests.zoo.table` make:"
        " each type of `AutoModelForImageTextToText` and `AutoModelForCausalLM`, shrunk to a tiny random model, against plain eager"
        " runs. `sightline models NAME` prints a type's lines, `sightline check MODEL` looks at a checkpoint of yours.",
        "",
        types_counted(),
        "",
        "**all** means: " + ", ".join(CHECKS.values()) + ".",
    ]
    for reads, title in (("pictures", "Types that read pictures"), ("text", "Types that read text")):
        chosen = [one for one in known_types() if one.reads == reads]
        lines += [
            "",
            f"## {title}",
            "",
            "| type | a checkpoint | works | what does not, and why |",
            "|---|---|---|---|",
        ]
        for one in sorted(chosen, key=lambda one: (not one.works, one.name)):
            works = "no" if not one.works else "all" if not one.refused else f"all but {len(one.refused)}"
            whys = "; ".join(f"{CHECKS.get(name, name)}: {reason}" for name, reason in one.refused.items())
            lines.append(f"| `{one.name}` | {one.checkpoint} | {works} | {whys.replace('|', ' ')} |")
    return "\n".join([*lines, ""])


def composition_page() -> str:
    """Markdown page: which methods compose in which order, and what a decoder's copy sees of them."""
    known, decoders = METHODS.known(), DECODERS.known()
    notes: list[str] = []

    def cell(first: str, second: str) -> str:
        if first == second:
            return "–"
        reason = exclusion(known[first], known[second])
        if reason is not None:
            note = f"`{min(first, second)}`, `{max(first, second)}`: {reason}."
            if note not in notes:
                notes.append(note)
            return "**no**"
        return "order" if order_matters(known[first], known[second]) else "either"

    rows = [
        f"| `{name}` | {known[name].acts} | " + " | ".join(cell(name, other) for other in known) + " |"
        for name in known
    ]
    refused = [
        f"`{name}`, `{other}`: {reason}."
        for name, decoder in decoders.items()
        for other, method in known.items()
        if (reason := exclusion(decoder, method)) is not None
    ]
    carried = ", ".join(f"`{name}`" for name, decoder in decoders.items() if not decoder.own_prompt)
    own = ", ".join(f"`{name}`" for name, decoder in decoders.items() if decoder.own_prompt)
    return "\n".join(
        [
            "# What composes with what",
            "",
            "Written by `make docs` from the methods' own declarations, which `tests/test_composition.py` holds against"
            " what tiny models compute.",
            "",
            "A method acts on the queries, on the logits, on the weights behind the softmax, or on the head outputs, and a"
            " layer works in that order. **either**: both orders in the list give the same result. **order**: the later one"
            " works on what the earlier one left. **no**: refused when the configuration is read.",
            "",
            "| method | acts on | " + " | ".join(f"`{name}`" for name in known) + " |",
            "|---" * (len(known) + 2) + "|",
            *rows,
            "",
            *(f"- {note}" for note in notes),
            "",
            "Every method goes with every decoder" + (", but for these:" if refused else "."),
            "",
            *(f"- {note}" for note in refused),
            *([""] if refused else []),
            f"Under {carried} whatever the decoder compares carries the methods' edits. The copy of {own} reads a prompt of"
            " its own and runs without them, because they speak of the model's tokens.",
            "",
        ]
    )


def thresholds() -> str:
    """Markdown of the gates' thresholds in the shipped calibration files."""
    lines = [
        "| model | signal | by | opens | AUROC | of hallucinated words | of true words |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, calibration in shipped().items():
        known = calibration.gate_thresholds
        for by in ("now", "previous") if known is not None else ():
            for signal, one in getattr(known, by):
                share = f"{100 * one.of_hallucinated:.0f} % | {100 * one.of_true:.0f} %"
                cells = f"`{signal}` | `{by}` | {one.side} {one.value:g} | {one.auroc:.2f} | {share}"
                lines.append(f"| {model.rpartition('/')[2]} | {cells} |")
    return "\n".join(lines)
