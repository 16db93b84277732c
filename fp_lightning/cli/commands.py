"""The commands by name, with their help. The modules behind them are imported when a command runs."""

from __future__ import annotations

TRAINER_COMMANDS = {  # run by Lightning's CLI
    "fit": "train an editor",
    "validate": "score an editor on the validation pairs: metrics.json, report.html",
    "test": "score an editor on the test pairs",
    "predict": "edit a folder of images",
}
COMMANDS = {  # name: (help, module, function)
    "pairs": ("build training pairs from videos", "data", "pairs"),
    "plan": ("predict the memory and time of a recipe before it runs", "training", "plan"),
    "convert": ("convert between released weights, checkpoints and pipeline folders", "weights", "convert"),
    "clips": ("write procedural videos", "data", "clips"),
    "scenes": ("write training pairs of procedural scenes, with exact flow and tracks", "data", "scenes"),
    "sweep": ("run recipes × seeds, resume them, and put their metrics into one table", "training", "sweep"),
    "evaluate": ("score folders of images from any system on the same pairs, side by side", "evaluation", "evaluate"),
    "benchmark": ("hold pairs out: a list with hashes, and inputs for other systems", "evaluation", "benchmark"),
    "baseline": ("edit the photos of a benchmark with another method", "baseline", "baseline"),
    "study": ("compare two systems by people: build the page, score the answers", "evaluation", "study"),
    "demo": ("start the interactive editor, a web page and a service", "demo", "demo"),
    "bench": ("measure speed, memory and accuracy against references", "training", "bench"),
    "doctor": ("report what this machine can do, and run a self-test", "doctor", "doctor"),
    "quickstart": ("run clips, pairs, fit, validate and predict in one go", "training", "quickstart"),
}
