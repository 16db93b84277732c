"""`fp-lightning demo`: the interactive editor."""

from __future__ import annotations

from fp_lightning.cli.parsing import make_parser


def demo(arguments: list[str]) -> None:
    """Start the interactive editor."""
    from fp_lightning.demo.serve import serve

    parser = make_parser(
        "demo", "Start the interactive editor: sketch, drag, cut and paste on a page. Stop it with Ctrl+C."
    )
    parser.add_argument("--model", default="tiny-editor", help="pipeline folder, hub id, or tiny-editor")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all interfaces, with a password"
    )
    parser.add_argument("--port", type=int, default=7860, help="0 for any free one")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="type of the weights (default: float16 on a GPU, else float32)",
    )
    parser.add_argument(
        "--password", help="password for the user name editor; generated for hosts other than this machine"
    )
    parser.add_argument("--no-password", action="store_true", help="require no password on any host")
    parser.add_argument("--queue", type=int, default=32, help="most waiting edits")
    parser.add_argument("--per-user", type=int, default=2, help="most waiting edits per browser or program")
    parser.add_argument("--max-megabytes", type=float, default=25, help="largest upload, MB")
    parser.add_argument("--max-megapixels", type=float, default=40, help="largest photo, megapixels")
    parser.add_argument("--keep-hours", type=float, default=24, help="hours to keep an unused session")
    parser.add_argument("--segmenter", metavar="MODEL", help="SAM model, folder or hub id: cut out objects by a click")
    options = vars(parser.parse_args(arguments))
    serve(open_to_all=options.pop("no_password"), **options)
