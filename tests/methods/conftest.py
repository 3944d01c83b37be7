import pytest
import torch


@pytest.fixture
def images():
    """Prepared images [3 3 128 128]."""
    return torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
