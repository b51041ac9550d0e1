"""Try a trained detector or segmentor on a local web page: drop an image, move the score threshold, download the json.

The page is served to this machine only, unless --host names another interface.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
import time

from pvt_det.engine.run_parser import RunParser
from pvt_det.errors import ConfigError
from pvt_det.utils.cli import add_public_key

_EXAMPLES = """
examples:
  the best checkpoint of a run, at http://127.0.0.1:7860:
    %(prog)s output/mine
  published weights of a recipe, on another port:
    %(prog)s retinanet_pvt_small --weights retinanet_pvt_small.pth --port 8000
  for everyone who can reach this machine, without a password:
    %(prog)s output/mine --host 0.0.0.0

Ctrl-C ends it. Uploaded images and results are removed then, or about an hour after the upload.
Needs Gradio: pip install gradio
exit codes: 0 done, 2 configuration, 4 checkpoint
"""


def build_parser() -> RunParser:
    """Build the parser of the command's options."""
    parser = RunParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file",
        default="",
        metavar="RUN",
        help="run folder, config file or exported file; needs no option if it comes first",
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best checkpoint")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="network interface to listen on (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (%(default)s)")
    parser.add_argument("--device", default="", help="cuda, cuda:1 or cpu (default: the first GPU if available)")
    add_public_key(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="RUN KEY VALUE",
        help="the run, unless --config-file is given, then keys and values of the config as KEY VALUE or KEY=VALUE",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.

    Raises:
        ConfigError: The port is out of range or cannot be used, or Gradio is not installed.
    """
    if not 1 <= args.port <= 65535:
        raise ConfigError(f"--port {args.port}: expected 1 to 65535.")
    from pvt_det.inference.app import launched, load_model, require_gradio
    from pvt_det.utils.signals import StopRequest

    require_gradio()
    model = load_model(
        args.config_file, args.weights, overrides=args.overrides, device=args.device, public_key=args.public_key
    )
    with launched(model, host=args.host, port=args.port) as url, StopRequest() as request:
        if not _is_loopback(args.host):
            print(
                f"warning: the page asks for no password. Everyone who can reach port {args.port} of this machine can "
                "use the model.",
                file=sys.stderr,
                flush=True,
            )
        print(f"Open {url} in a browser. Ctrl-C ends it.", flush=True)
        while request.signal_name is None:
            time.sleep(0.2)
    print("Ended.")
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
