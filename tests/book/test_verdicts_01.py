"""01 says in words what its two histograms show."""

from verdicts import said, verdict_cells


def test_every_verdict_of_the_notebook_has_its_test():
    assert len(verdict_cells("01")) == 1


def test_how_hard_the_pictures_are():
    easy, hard = said("01", 0, crowded=0.0, small=0.01), said("01", 0, crowded=0.6, small=0.3)
    assert "no pictures have more objects" in easy and "hardly any objects are smaller" in easy
    assert "most pictures have more objects" in hard and "some objects are smaller" in hard
