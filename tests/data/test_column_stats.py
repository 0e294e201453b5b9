"""Statistics of an episode's columns: those of all columns at once are those of each alone."""

from __future__ import annotations

import numpy as np

from realrl.data.stats import QUANTILES, column_stats


def test_columns_of_all_shapes_have_their_own_statistics() -> None:
    rng = np.random.default_rng(0)
    for frames in (1, 7, 200):
        columns = {"state": rng.standard_normal((frames, 39)).astype(np.float32), "done": rng.random(frames) < 0.5,
                   "cloud": rng.standard_normal((frames, 5, 3)), "index": np.arange(frames),
                   "gap": np.where(rng.random((frames, 2)) < 0.3, np.nan, 1.0)}
        found = column_stats(columns)
        assert found.keys() == columns.keys()
        for name, column in columns.items():
            x = column.reshape(-1, column.shape[-1] if column.ndim > 1 else 1).astype(np.float64)
            for quantile, share in QUANTILES.items():
                np.testing.assert_array_equal(found[name][quantile], np.quantile(x, share, axis=0))
            np.testing.assert_array_equal(found[name]["std"], x.std(0))
            assert found[name]["count"] == frames
        assert not QUANTILES.keys() & column_stats(columns, quantiles=False)["state"].keys()
