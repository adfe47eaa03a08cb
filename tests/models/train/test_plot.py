from __future__ import annotations

import re

from models.train.plot import HEIGHT, MARGIN, WIDTH, Panel, draw


def test_a_line_goes_from_corner_to_corner_and_every_name_stands_once() -> None:
    panel = Panel("wrong & right", (0.0, 0.5, 1.0), {"a < b": [(0.0, 0.0), (1.0, 1.0)]})

    text = draw("share", [panel, panel])

    first, second = re.findall(r'<polyline points="([^"]+)"', text)
    assert first == f"{MARGIN:.1f},{HEIGHT - MARGIN:.1f} {WIDTH - MARGIN:.1f},{MARGIN:.1f}"
    assert second != first
    assert text.count(">a &lt; b</text>") == 1
    assert text.count(">wrong &amp; right</text>") == 2
