"""What the tests of published weights share: none of them may download anything."""

import pytest
import timm


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    create_model = timm.create_model

    def create(*arguments, pretrained=False, **options):
        assert not pretrained, "nothing may be downloaded"
        return create_model(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", create)
