"""Tasks of the suites, with the notes of `registry.describe`."""

TASKS: dict[str, dict[str, str]] = {
    "craftax": {
        "Craftax-Classic-Symbolic-v1": "",
        "Craftax-Classic-Pixels-v1": "",
        "Craftax-Symbolic-v1": "",
        "Craftax-Pixels-v1": "",
    },
    "jaxmarl": {
        "SMAX-3m": "",
        "SMAX-2s3z": "",
        "SMAX-25m": "",
        "SMAX-3s5z": "",
        "SMAX-8m": "",
        "SMAX-5m_vs_6m": "",
        "SMAX-10m_vs_11m": "",
        "SMAX-27m_vs_30m": "",
        "SMAX-3s5z_vs_3s6z": "",
        "SMAX-3s_vs_5z": "",
        "SMAX-6h_vs_8z": "",
        "SMAX-smacv2_5_units": "",
        "SMAX-smacv2_10_units": "",
        "SMAX-smacv2_20_units": "",
        "MPE_simple_spread_v3": "",
        "MPE_simple_v3": "",
        "overcooked": "",
    },
    "playground": {},
    "jumanji": {},
    "pgx": {},
    "xminigrid": {},
    "navix": {},
}
