"""The zoo's models learn, its data are real, and its names resolve."""

import gzip
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.zoo import specs
from fastscape.zoo.data import ALPHABET
from fastscape.zoo.train import checkpoint_steps


def test_training_learns_and_leaves_log_spaced_checkpoints(tmp_path, untouched):
    torch.manual_seed(0)
    model, other = zoo.cnn(), zoo.mlp(hidden=(2,))
    with untouched(other):  # the process is left alone; the trained model is not
        files = zoo.train(model, zoo.digits(), tmp_path, steps=120, checkpoints=6)
    assert [file.stem for file in files] == [f"step{step}" for step in (0, 1, 3, 11, 36, 120)]
    objective = fs.Objective(model, zoo.digits("test"), criterion=F.cross_entropy)
    assert objective.accuracy() > 0.85
    assert objective.at(load_file(files[0])).accuracy() < 0.4
    assert objective.at(load_file(files[-1])).loss() == objective.loss()


def test_training_is_reproducible(tmp_path):
    losses = []
    for run in ("a", "b"):
        torch.manual_seed(3)
        zoo.train(zoo.mlp(hidden=(8,)), zoo.digits(samples=64), tmp_path / run, steps=5, progress=lambda _, x: losses.append(x))
    assert losses[:5] == losses[5:]


def test_checkpoint_steps_are_log_spaced():
    assert checkpoint_steps(300, 8) == [0, 1, 3, 7, 17, 45, 116, 300]
    assert checkpoint_steps(3, 10) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="steps must be at least 1 and count at least 2, got 0 and 3"):
        checkpoint_steps(0, 3)


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    inputs, targets = zoo.digits(samples=10)[0]
    np.testing.assert_allclose(inputs[:, 0].numpy() * 16, load_digits().images[:10])
    assert targets.tolist() == load_digits().target[:10].tolist()
    assert sum(len(y) for _, y in zoo.digits()) == 1437
    assert sum(len(y) for _, y in zoo.digits("test")) == 360
    wide, _ = zoo.digits(samples=3, size=32, channels=3)[0]
    assert wide.shape == (3, 3, 32, 32)
    assert torch.equal(wide[:, 0], wide[:, 2])


def test_pydoc_text_is_english_and_shifted_by_one():
    inputs, targets = zoo.pydoc_text(samples=4)[0]
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = "".join(ALPHABET[code] for batch, _ in zoo.pydoc_text() for code in batch.flatten().tolist())
    assert all(word in text.lower() for word in (" the ", " is ", " to ", " of ", " a "))
    model = zoo.tiny_transformer(width=16, heads=2)
    objective = fs.Objective(model, zoo.pydoc_text(samples=8), criterion=F.cross_entropy)
    assert objective.loss() == pytest.approx(np.log(100), rel=0.1)


def test_the_transformer_is_causal():
    torch.manual_seed(0)
    model = zoo.tiny_transformer(width=16, heads=2).eval()
    tokens = torch.randint(0, 100, (1, 20))
    later = tokens.clone()
    later[0, 12:] = 5
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[..., :12], model(later)[..., :12])


def test_resnet18_has_the_cifar_stem():
    model = zoo.resnet18()
    assert model.conv1.stride == (1, 1)
    assert sum(tensor.numel() for tensor in model.parameters()) == 11_173_962
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_cifar10_is_read_by_the_real_loader(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 3072), dtype=np.uint8), rng.integers(0, 10, 20).tolist()
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    with (folder / "test_batch").open("wb") as stream:
        pickle.dump({"data": images, "labels": labels}, stream)
    with (folder / "batches.meta").open("wb") as stream:
        pickle.dump({"label_names": list("abcdefghij")}, stream)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _self: True)  # the hashes are those of the real files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    inputs, targets = zoo.cifar10(tmp_path, samples=15)[0]
    assert targets.tolist() == labels[:15]
    expected = (images[3].reshape(3, 32, 32)[0] / 255 - 0.4914) / 0.2470
    np.testing.assert_allclose(inputs[3, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="root must hold CIFAR-10 in torchvision's format, got"):
        zoo.cifar10(tmp_path / "nothing")


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes([3, 1, 4, 1, 5])))
    inputs, targets = zoo.fashion_mnist(samples=4, root=tmp_path)[0]
    assert targets.tolist() == [3, 1, 4, 1]
    np.testing.assert_allclose(inputs[2, 0].numpy() * 255, pixels[2], atol=1e-4)
    with pytest.raises(ValueError, match="install the Debian package dataset-fashion-mnist"):
        zoo.fashion_mnist(root=tmp_path / "nothing")


def test_bad_data_arguments_are_named():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        zoo.digits("valid")
    with pytest.raises(ValueError, match="samples and batch_size must be positive"):
        zoo.digits(samples=0)
    with pytest.raises(ValueError, match="activation must be 'relu', 'tanh' or 'gelu', got 'swish'"):
        zoo.mlp(activation="swish")


def test_specifications_name_zoo_torchvision_modules_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import torch\n\ndef make(width=3):\n    return torch.nn.Linear(width, 2)\n")
    assert specs.build("zoo:mlp?hidden=(5,)&classes=4", "MODEL", specs.MODELS)[1].out_features == 5
    assert specs.build("torchvision:resnet18?num_classes=7", "MODEL", specs.MODELS).fc.out_features == 7
    assert specs.build(f"{tmp_path}/mine.py:make?width=6", "MODEL", specs.MODELS).in_features == 6
    assert specs.build("torch.nn:Linear?in_features=2&out_features=9", "MODEL", specs.MODELS).out_features == 9
    first, second = (specs.build("zoo:mlp", "MODEL", specs.MODELS) for _ in range(2))
    assert torch.equal(first[1].weight, second[1].weight)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "MODEL must look like zoo:NAME, package.module:factory or file.py:factory, got 'resnet18'"),
        ("zoo:vgg", "MODEL must be one of zoo:mlp, zoo:cnn, .*got 'zoo:vgg'"),
        ("zoo:mlp?depth=3", "MODEL 'zoo:mlp.depth=3' must run, got TypeError: .*unexpected keyword argument 'depth'"),
        ("zoo:mlp?depth", "arguments must look like name=value, got 'depth'"),
        ("nowhere.py:make", "MODEL must name an existing file, got 'nowhere.py'"),
        ("no.such.module:make", "MODEL must name an importable module, got 'no.such.module'"),
        ("torch.nn:NoLayer", "torch.nn has no callable 'NoLayer'"),
    ],
)
def test_bad_specifications_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        specs.build(spec, "MODEL", specs.MODELS)


def test_a_narrow_resnet_has_the_layers_of_resnet18():
    wide, narrow = zoo.resnet18(width=64), zoo.resnet18(width=8)
    assert [name for name, _ in narrow.named_parameters()] == [name for name, _ in wide.named_parameters()]
    for (name, thin), (_, full) in zip(narrow.named_parameters(), wide.named_parameters(), strict=True):
        ratio = [a / b for a, b in zip(full.shape, thin.shape, strict=True)]
        assert set(ratio) <= {1.0, 8.0}, name
    assert narrow.eval()(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_each_step_is_told_with_the_optimizer_and_its_gradients(tmp_path):
    told = []

    def each(step, optimizer):
        told.append((step, type(optimizer).__name__, optimizer.param_groups[0]["params"][0].grad is not None))

    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    zoo.train(zoo.mlp(hidden=(4,)), zoo.digits(samples=64), tmp_path, steps=2, checkpoints=2, optimizer=sgd, each=each)
    assert told == [(0, "SGD", False), (1, "SGD", True), (2, "SGD", True)]
