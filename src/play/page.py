"""The page of `sightline play`, in Gradio, and its server: on this machine only, and nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ..common.errors import SightlineError, install
from ..models.naming import EMBEDDED
from ..plugin.config import Config
from . import settings
from .answers import Player
from .cards import STYLE, card, failure, framed

HOST = "127.0.0.1"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' data: blob:"
)
"""What a browser may fetch for the page: what this server gives, and nothing else."""
FIRST = Config.load({"methods": [{"vhr": {"alpha": 2.0, "layers": [6, 7]}}]})
"""What the embedded model is shown with at first: `vhr` of eval/demo.yaml."""
SIDES = ("first", "second")


def import_gradio() -> Any:
    """Gradio, told to stay at home. Raises SightlineError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise SightlineError(f"the page needs Gradio: {install('play')}") from error
    return gradio


def serve(player: Player, port: int, say: Callable[[str], None]) -> None:
    """Serve the page on this machine until it is interrupted; says where. Raises SightlineError where the port is taken."""
    import uvicorn

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SightlineError(f"port {port} is not free ({error.strerror}): give another with --port") from error
    app = application(player)
    say(f"http://{HOST}:{port}")
    uvicorn.run(app, host=HOST, port=port, log_level="warning")


def application(player: Player) -> Any:
    """The page as an ASGI application."""
    gradio = import_gradio()
    from fastapi import FastAPI, Request
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no other site's name may lead here

    @app.middleware("http")
    async def at_home(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    plain_fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gradio.mount_gradio_app(
        app,
        build(gradio, player),
        path="/",
        server_name=HOST,
        footer_links=[],
        ssr_mode=False,
        theme=gradio.themes.Default(**plain_fonts).set(body_text_color_subdued="*neutral_600"),  # its own is too pale
        css=STYLE,
    )


def build(gradio: Any, player: Player) -> Any:
    """The page: a picture and a question; plain and two configurations; what they say, and ten scenes measured."""
    names = player.usable
    first = FIRST if player.name == EMBEDDED else Config.load(names[0])
    cards, texts = [], []
    with gradio.Blocks(title="Sightline", analytics_enabled=False) as page:
        gradio.Markdown(f"# Sightline\nThe same model, plain and with Sightline attached: `{player.name}`.")
        with gradio.Row():
            with gradio.Column(min_width=280):
                picture = gradio.Image(
                    type="pil", sources=["upload", "clipboard"], label="Picture", height=280, elem_id="picture"
                )
            with gradio.Column(min_width=280):
                scenes = gradio.Gallery(
                    player.scenes,
                    label="or choose a scene",
                    columns=3,
                    height=280,
                    allow_preview=False,
                    buttons=[],
                    elem_id="scenes",
                )
            with gradio.Column(min_width=280):
                question = gradio.Textbox(player.question, label="Question", lines=2)
                tokens = gradio.Slider(8, 256, 64, step=8, label="longest answer, in tokens")
                with gradio.Row():
                    ask = gradio.Button("Ask", variant="primary", elem_id="ask")
                    measure = gradio.Button("Try ten scenes", elem_id="measure")
        gradio.Markdown("Point at a word to see where the model looked. Marked words are weakly grounded.")
        with gradio.Row():
            for side, config in (("plain", None), *zip(SIDES, (first, None), strict=True)):
                with gradio.Column(min_width=280):
                    gradio.Markdown(f"### {side}")
                    cards.append(gradio.HTML(elem_id=f"answer-{side}"))
                    if side in SIDES:
                        texts.append(_side(gradio, names, side, config))
        report = gradio.HTML(elem_id="report")

        def pick(event: Any) -> Any:
            return player.scenes[event.index]

        pick.__annotations__ = {"event": gradio.SelectData}  # by which Gradio knows what to hand in
        scenes.select(pick, None, picture)
        queue: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        ask.click(
            lambda *given: (yield from asked(player, *given)), [picture, question, tokens, *texts], cards, **queue
        )
        measure.click(lambda *given: measured(player, given), texts, report, **queue)
    return page


def _side(gradio: Any, names: Sequence[str], side: str, config: Config | None) -> Any:
    """The controls of one configuration; its YAML is what they write and show, and what is asked with."""
    every = [control for name in names for control in settings.controls(Config.load(name))]
    keys = [(one.method, one.name) for one in every]

    def values(config: Config | None) -> dict[tuple[str, str], Any]:
        return {(one.method, one.name): one.value for one in settings.controls(config or Config())}

    fields, now = [], values(config)
    with gradio.Accordion("Configuration", open=config is not None):
        held = [] if config is None else [name for name, _ in config.methods]
        chosen = gradio.Dropdown(
            list(names), value=held, multiselect=True, label="methods, and a decoder", elem_id=f"methods-{side}"
        )
        text = gradio.Code(
            settings.write(config), language="yaml", label="YAML", lines=2, interactive=True, elem_id=f"yaml-{side}"
        )
        for key, control in zip(keys, every, strict=True):
            shown = {"label": ": ".join(key), "info": control.description, "interactive": True}
            shown |= {"value": now.get(key, control.value), "visible": key in now}
            if control.kind == "slider":
                fields.append(gradio.Slider(control.low, control.high, step=control.step, **shown))
            elif control.kind == "choice":
                fields.append(gradio.Dropdown(list(control.choices), **shown))
            else:
                fields.append(gradio.Checkbox(**shown))

    def follow(written: str) -> list[Any]:
        """What the controls show of the YAML."""
        now = values(settings.read(written))
        return [gradio.update(visible=key in now, **({"value": now[key]} if key in now else {})) for key in keys]

    def choose(written: str, names: list[str]) -> list[Any]:
        written = settings.choose(written, names)
        return [written, *follow(written)]

    def told(act: Callable[..., Any], *given: Any) -> Any:
        try:
            return act(*given)
        except SightlineError as error:
            raise gradio.Error(str(error)) from error

    chosen.input(partial(told, choose), [text, chosen], [text, *fields], show_progress="hidden")
    text.blur(partial(told, follow), text, fields, show_progress="hidden")
    for field, (method, name) in zip(fields, keys, strict=True):
        change = partial(told, partial(settings.change, method=method, name=name))
        field.input(change, [text, field], text, show_progress="hidden", trigger_mode="always_last")
    return text


def asked(player: Player, picture: Any, question: str, new_tokens: float, *texts: str) -> Iterator[list[str]]:
    """What stands in the columns while the answers grow: plain, then each configuration that is not empty."""
    shown = ["" for _ in ("plain", *texts)]
    for number, text in enumerate([None, *texts]):
        try:
            config = None if text is None else settings.read(text)
            if text is not None and config is None:
                continue
            for answer in player.answer(question, picture, config, new_tokens=int(new_tokens)):
                shown[number] = card(answer, picture)
                yield list(shown)
        except SightlineError as error:
            shown[number] = failure(error)
        yield list(shown)


def measured(player: Player, texts: Sequence[str]) -> str:
    """A report on ten scenes, plain and under each configuration that is not empty."""
    try:
        configs = {side: settings.read(text) for side, text in zip(SIDES, texts, strict=True)}
        return framed(player.measured({side: config for side, config in configs.items() if config is not None}))
    except SightlineError as error:
        return failure(error)
