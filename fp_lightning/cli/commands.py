"""The commands that Lightning runs."""

TRAINER_COMMANDS = {
    "fit": "train an editor",
    "validate": "score an editor on the validation pairs: metrics.json, report.html",
    "test": "the same on the test pairs",
    "predict": "edit a folder of images",
}
