"""The picture of the detection benchmark."""

from xml.etree import ElementTree as ET

from bench.support.picture import draw

SVG = "{http://www.w3.org/2000/svg}"


def test_each_contender_is_one_point_where_its_figures_put_it() -> None:
    seen = {
        "agent": {
            "kill": {"dead_s": [0.2, 0.3]},
            "disturbed": [("paused", 2.0, False), ("cut", 60.0, False)],
        },
        "Ray <fast>": {"kill": {"dead_s": [3.0]}, "disturbed": [("paused", 2.0, False), ("cut", 60.0, True)]},
        "not measured": {"kill": {"dead_s": []}, "disturbed": []},
    }
    root = ET.fromstring(draw(seen))
    points = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    assert len(points) == 2
    assert points[0][0] < points[1][0]  # sooner is further left
    assert points[0][1] > points[1][1]  # fewer false deaths is further down
    texts = [t.text or "" for t in root.iter(f"{SVG}text")]
    assert "agent: 0.25 s, 0 of 2" in texts
    assert "Ray <fast>: 3.00 s, 1 of 2" in texts
