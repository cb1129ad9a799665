"""The columns that only the drawer of a job shows, beside those that the page filters, sorts and draws by."""

from __future__ import annotations

import pandas as pd

CODED = (
    *("hidden", "ffn", "loops", "rounds", "discarded", "resting_bytes", "trainable_params"),
    *("activation_bytes", "optimizer_bytes", "counted_flops", "launches", "reference"),
    *("sm_mhz", "temperature_c", "throttle", "foreign", "torch", "commit"),
)
MEASURED = (
    *("min_ms", "p90_ms", "p99_ms", "hot_ms", "graph_ms", "kernel_ms", "host_ms"),
    *("power_watts", "wall_s", "mean_abs", "grad_max_abs", "grad_cosine"),
)


def known(frame: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    """Those of the columns in which any row has a value."""
    return [name for name in names if frame[name].notna().any() and not (frame[name] == "").all()]
