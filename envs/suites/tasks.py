"""Tasks of the suites, with the notes of `registry.describe`."""

TASKS: dict[str, dict[str, str]] = {
    "craftax": {
        "Craftax-Classic-Symbolic-v1": "",
        "Craftax-Classic-Pixels-v1": "",
        "Craftax-Symbolic-v1": "",
        "Craftax-Pixels-v1": "",
    },
    "playground": {},
    "jumanji": {},
    "pgx": {},
    "xminigrid": {},
    "navix": {},
}
