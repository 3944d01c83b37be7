"""Trainings that are broken off, for tests of how they go on."""

import contextlib

import pytest

from dias_lab.training.loop import Training, fit


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is tidied up."""


def killed_twice(train, moment, places, monkeypatch):
    """Call `train` twice; each dies at its call number `moment` of the functions at `places`, (module, name) each."""
    calls = 0

    def deadly(function):
        def wrapped(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            return function(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for module, name in places:
            patch.setattr(module, name, deadly(getattr(module, name)))
        for _ in range(2):  # and once more, on the way back
            with contextlib.suppress(Killed):
                train()
            calls = 0


def stopped(config, run_dir, at, monkeypatch, fit=fit):
    """A run that was interrupted before step `at`."""
    update = Training.update

    def stop(self, batch):
        if self.step == at:
            raise KeyboardInterrupt
        return update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(config, run_dir, progress=False)
