"""A local web page to try a model on: drop an image, move the score threshold, and download the results.

The page uses Gradio, an optional package.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_det.errors import ConfigError
from pvt_det.inference import SCORE_THRESHOLD
from pvt_det.inference.load import AnyPredictor, load_predictor
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.uploads import Results
from pvt_det.utils.extras import require_packages

if TYPE_CHECKING:
    import gradio as gr

MAX_UPLOAD = "100mb"
# A visitor's results are kept for this long after the upload, and those of at most this many visitors.
_KEPT_SECONDS, _MAX_SESSIONS = 3600, 100
_MAX_WAITING = 32  # requests


def require_gradio() -> None:
    """Check that Gradio is installed.

    Raises:
        ConfigError: It is not.
    """
    require_packages("The web page", "gradio", extra="app")


def load_model(
    config: str, weights: str = "", *, overrides: Sequence[str] = (), device: str = "", public_key: str = ""
) -> AnyPredictor:
    """Load the model of a run or a config, a detector with the low score threshold of its config.

    Args:
        config: A run folder, a config file, or an exported file.
        weights: Weights of the model, in any form that `MODEL.WEIGHTS` accepts. "" selects those of the run.
        overrides: Config keys and values, alternating.
        device: Device such as "cuda:1" or "cpu". "" selects the first GPU if one is available.
        public_key: PEM file with which the signature of the config's folder is verified. "" verifies nothing.

    Raises:
        CheckpointError: The weights or the signature are missing, damaged or do not match.
        ConfigError: The config is not valid.
    """
    return load_predictor(
        config, weights, score_threshold=None, overrides=overrides, device=device, public_key=public_key
    )


@contextmanager
def launched(model: AnyPredictor, *, host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """Context manager that serves the page, and at its end removes all uploaded and written files.

    Args:
        model: The model, as `load_model` returns it.
        host: Name or address of the network interface to listen on. With any other than the default, other machines may
            reach the page, which asks for no password.
        port: Port to listen on, 1 to 65535.

    Yields:
        The address of the page.

    Raises:
        ConfigError: Gradio is not installed, or the port or host cannot be used.
    """
    require_gradio()
    with tempfile.TemporaryDirectory(prefix="pvt_det_app_") as folder:
        # Gradio copies what it serves to this folder, under names that depend on the content, so that the browser does
        # not show an older picture.
        served, results = Path(folder, "served"), Path(folder, "results")
        results.mkdir()
        # No other file of the machine may be readable through the page.
        settings = {"GRADIO_TEMP_DIR": str(served), "GRADIO_ALLOWED_PATHS": "", "GRADIO_ANALYTICS_ENABLED": "False"}
        # Gradio opens the page once itself, and must not do that through a proxy.
        direct = ",".join(filter(None, (os.environ.get("no_proxy", os.environ.get("NO_PROXY")), "localhost", host)))
        with _environment({**settings, "no_proxy": direct, "NO_PROXY": direct}):
            page = build_page(model, results)
            try:
                _, url, _ = page.launch(
                    server_name=host,
                    server_port=port,
                    max_file_size=MAX_UPLOAD,
                    state_session_capacity=_MAX_SESSIONS,
                    allowed_paths=[],
                    footer_links=[],
                    prevent_thread_lock=True,
                    quiet=True,
                    **dict.fromkeys(
                        ("share", "inline", "enable_monitoring", "mcp_server", "pwa", "run_history", "ssr_mode"), False
                    ),
                )
            except OSError as error:
                raise ConfigError(
                    f"The page cannot be served on {host}, port {port}. The port is in use, or the address is not that "
                    "of this machine. Choose another --port or --host."
                ) from error
            try:
                yield url
            finally:
                page.close(verbose=False)


def build_page(model: AnyPredictor, folder: Path) -> gr.Blocks:
    """Build the page of a model.

    Args:
        model: The model.
        folder: Folder for the results, which must exist.

    Returns:
        The page, ready to be launched.
    """
    import gradio as gr

    results = Results(model, folder)
    with gr.Blocks(title="pvt-det", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as page:
        state = gr.State(time_to_live=_KEPT_SECONDS, delete_callback=results.remove)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.File(label="Image", height=160, elem_id="image")
                threshold = gr.Slider(
                    results.lowest_score,
                    1,
                    max(SCORE_THRESHOLD, results.lowest_score),
                    step=0.01,
                    label="Score threshold",
                    visible=isinstance(model, Predictor),
                    elem_id="threshold",
                )
                # Unlike Markdown or HTML, a text box cannot run what class and file names contain.
                text = gr.Textbox(label="Result", interactive=False, lines=2, elem_id="result")
                files = gr.File(label="Download", file_count="multiple", interactive=False, height=120, elem_id="files")
            with gr.Column(scale=3):
                # Gradio's third button would upload the picture to a public site.
                picture = gr.Image(
                    label="Picture", interactive=False, buttons=["download", "fullscreen"], elem_id="picture"
                )
        shown = [picture, text, files]
        one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1}
        image.change(results.predict, [state, image, threshold], [state, *shown], api_name="predict", **one_at_a_time)
        threshold.input(
            results.show,
            [state, threshold],
            shown,
            api_name="show",
            trigger_mode="always_last",
            show_progress="hidden",
            **one_at_a_time,
        )
    page.queue(max_size=_MAX_WAITING)
    return page


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Context manager in which these environment variables are set."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
