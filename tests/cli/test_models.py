"""Networks by name: of timm, of torchvision, of a folder, with their own classes and images."""

from pathlib import Path

import pytest
import torch
from torch import nn

from selector.cli.models import placed, read_network
from selector.errors import SelectorError
from selector.network.checkpoint import save_pruned
from selector.pruning.prune import prune

RANDOM = Path("random")


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def assert_same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_torchvision_s_networks_have_the_file_s_classes(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    model = models.squeezenet1_1(num_classes=7)
    found = read_network("torchvision:squeezenet1_1", saved(model, tmp_path / "w.pth"))
    assert_same(found.model, model)
    prepared = found.preparation
    assert (prepared.mean, prepared.size) == ((0.485, 0.456, 0.406), 224)
    assert (prepared.std, prepared.channels) == ((0.229, 0.224, 0.225), 3)


def test_timm_s_networks_have_the_file_s_classes_and_channels(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model("mobilenetv3_small_050", num_classes=5, in_chans=1)
    found = read_network("timm:mobilenetv3_small_050", saved(model, tmp_path / "w.pth"))
    assert_same(found.model, model)
    assert (len(found.preparation.mean or ()), found.preparation.channels) == (1, 1)
    parts = {"state_dict": model.state_dict(), "arch": "mobilenetv3_small_050", "epoch": 3}
    torch.save(parts, tmp_path / "checkpoint.pth.tar")
    again = read_network("timm:mobilenetv3_small_050", tmp_path / "checkpoint.pth.tar")
    assert_same(again.model, model)


def test_pruned_networks_come_back_by_name(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    model = models.squeezenet1_1(num_classes=5).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small = prune(model, [(images, torch.arange(4))], criterion="l1", ratio=0.5, rounds=1).model
    save_pruned(small, tmp_path / "small.safetensors")
    found = read_network("torchvision:squeezenet1_1", tmp_path / "small.safetensors").model.eval()
    assert_same(found, small)
    assert torch.equal(found(images), small(images))


@pytest.mark.slow
def test_a_folder_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    model.save_pretrained(tmp_path / "net")
    about = '{"image_mean": [0.5], "image_std": [0.25], "size": {"shortest_edge": 48}}'
    (tmp_path / "net" / "preprocessor_config.json").write_text(about)
    found = read_network(f"transformers:{tmp_path / 'net'}", None)
    assert_same(found.model, model)
    assert (found.preparation.mean, found.preparation.size) == ((0.5,), 48)
    with pytest.raises(SelectorError, match="no such folder; save_pretrained writes one"):
        read_network("transformers:absent", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet81", "torchvision has no network 'resnet81'; did you mean resnet"),
        ("timm:mobilenetv3_smal_100", "did you mean mobilenetv3_small_100"),
    ],
)
def test_unknown_names_are_told(name: str, message: str) -> None:
    pytest.importorskip(name.partition(":")[0], reason="the library is not installed")
    with pytest.raises(SelectorError, match=message):
        read_network(name, RANDOM)


def test_published_weights_are_asked_for_only_where_they_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")

    def offline(*args: object, **named: object) -> None:
        raise OSError("no way out of here")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    read_network("torchvision:squeezenet1_1", None, needed=False)
    read_network("torchvision:squeezenet1_1", RANDOM)
    with pytest.raises(SelectorError, match=r"published weights \(OSError: no way.*--weights ran"):
        read_network("torchvision:squeezenet1_1", None)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(SelectorError, match=f"--device {device} cannot be used here: "):
        placed(nn.Linear(2, 2), device)
    assert placed(nn.Linear(2, 2), "auto").weight.device.type in ("cpu", "cuda")
