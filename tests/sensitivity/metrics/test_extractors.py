"""Extractors: what they serve, what they refuse, and Inception's anatomy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from sedaq.errors import InputError
from sedaq.sensitivity.metrics import extractors
from sedaq.sensitivity.metrics.extractors import load_extractor
from sedaq.sensitivity.metrics.inception import InceptionV3
from sedaq.storage import file_sha256


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_embedded_gives_features_and_logits_whatever_the_batch(rng: torch.Generator) -> None:
    extractor = load_extractor("embedded", image_shape=(1, 28, 28))
    images = torch.rand(5, 1, 28, 28, generator=rng)
    features = extractor(images)
    assert features.pooled.shape == (5, 128) and features.spatial is None
    assert features.logits is not None and features.logits.shape == (5, 10)
    torch.testing.assert_close(features.pooled[3:4], extractor(images[3:4]).pooled, rtol=1e-4, atol=1e-4)
    assert extractor.fingerprint == load_extractor("embedded", image_shape=(1, 28, 28)).fingerprint


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 30, 30)])
def test_embedded_refuses_other_shapes_and_lists_the_choices(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="inception:FILE.*transformers:FOLDER"):
        load_extractor("embedded", image_shape=shape)


def test_images_of_a_wrong_shape_are_refused() -> None:
    extractor = load_extractor("embedded", image_shape=(1, 28, 28))
    with pytest.raises(InputError, match=r"\(2, 3, 28, 28\)"):
        extractor(torch.zeros(2, 3, 28, 28))


def test_unknown_extractor_lists_the_choices() -> None:
    with pytest.raises(InputError, match="'vgg' is unknown.*embedded"):
        load_extractor("vgg", image_shape=(3, 32, 32))


def test_missing_inception_says_what_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDAQ_INCEPTION", str(tmp_path / "absent.pth"))
    with pytest.raises(InputError, match="absent.pth.*pt_inception-2015-12-05-6726825d.pth.*SEDAQ_INCEPTION"):
        load_extractor("inception", image_shape=(3, 32, 32))
    monkeypatch.delenv("SEDAQ_INCEPTION")
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"elsewhere/pt_inception"):
        load_extractor("inception", image_shape=(3, 32, 32))
    monkeypatch.delenv("SEDAQ_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"\.cache/sedaq/pt_inception"):
        load_extractor("inception", image_shape=(3, 32, 32))


def test_foreign_inception_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="sha256"):
        load_extractor(f"inception:{path}", image_shape=(3, 32, 32))
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", file_sha256(path))
    with pytest.raises(InputError, match="state dict"):
        load_extractor(f"inception:{path}", image_shape=(3, 32, 32))


def test_inception_hash_bears_its_published_prefix() -> None:
    assert extractors.INCEPTION_FILE.endswith(f"-{extractors.INCEPTION_SHA256[:8]}.pth") and len(extractors.INCEPTION_SHA256) == 64


def test_inception_anatomy() -> None:
    with torch.device("meta"):
        network = InceptionV3()
        pooled, spatial, logits = network(torch.zeros(2, 3, 32, 32))
        average = network.Mixed_7b(torch.zeros(1, 1280, 8, 8))
    assert (pooled.shape, spatial.shape, logits.shape) == ((2, 2048), (2, 7 * 17 * 17), (2, 1008))
    assert average.shape == (1, 2048, 8, 8)
    names = dict(network.named_parameters())
    trunk = sum(p.numel() for name, p in names.items() if not name.startswith("fc."))
    assert trunk == 21_785_568  # the architecture's published count (Keras: 21,751,136 without the scales and shifts of batch norm)
    assert names["Mixed_6e.branch7x7dbl_4.conv.weight"].shape == (192, 192, 7, 1)
    assert names["Mixed_7c.branch3x3dbl_3b.bn.weight"].shape == (384,)
    assert len([name for name in names if name.endswith("conv.weight")]) == 94


def test_average_pool_leaves_padding_out_and_last_block_takes_the_maximum() -> None:
    x = torch.ones(1, 1, 3, 3)
    x[0, 0, 0, 0] = 2
    with torch.device("meta"):
        network = InceptionV3()
    assert network.Mixed_5b._pooled(x)[0, 0, 0, 0].item() == pytest.approx(5 / 4)
    assert network.Mixed_7b._pooled(x)[0, 0, 0, 0].item() == pytest.approx(5 / 4)
    assert network.Mixed_7c._pooled(x)[0, 0, 0, 0].item() == 2


def test_inception_loads_a_saved_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    with torch.device("meta"):
        network = InceptionV3()
    network = network.to_empty(device="cpu").eval()
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=rng)
        else:
            tensor.fill_(1 if name.endswith(("bn.weight", "running_var")) else 0)
    path = tmp_path / "inception.pth"
    state = {name: t.half() for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, path)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", file_sha256(path))
    extractor = load_extractor(f"inception:{path}", image_shape=(1, 16, 16))
    images = torch.rand(1, 1, 16, 16, generator=rng)
    features = extractor(images)
    assert features.spatial is not None and features.logits is not None
    network.load_state_dict({name: t.float() for name, t in state.items()}, strict=False)
    with torch.inference_mode():
        pooled, spatial, logits = network(images.repeat(1, 3, 1, 1))
    torch.testing.assert_close(features.pooled, pooled)
    torch.testing.assert_close(features.spatial, spatial)
    torch.testing.assert_close(features.logits, logits)


def test_transformers_missing_or_without_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="transformers:FOLDER"):
        load_extractor("transformers", image_shape=(3, 32, 32))
    with pytest.raises(InputError, match=r"sedaq\[transformers\]|no such folder"):
        load_extractor(f"transformers:{tmp_path / 'absent'}", image_shape=(3, 32, 32))


def write_preprocessing(folder: Path) -> None:
    settings = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def test_transformers_vision_model(tmp_path: Path, rng: torch.Generator) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    write_preprocessing(tmp_path)
    extractor = load_extractor(f"transformers:{tmp_path}", image_shape=(1, 8, 8))
    assert extractor(torch.rand(2, 1, 8, 8, generator=rng)).pooled.shape == (2, 16)
    assert extractor.requested(["a digit"]) is None, "it reads no text"
    assert extractor.requested([3, 1]).tolist() == [3, 1] and extractor.requested(None) is None


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights whose tokenizer knows letters."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    letters = [chr(97 + i) for i in range(26)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    config = transformers.CLIPConfig(
        text_config={**common, "vocab_size": len(words), "max_position_embeddings": 8, "bos_token_id": 52, "eos_token_id": 53},
        vision_config={**common, "image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    write_preprocessing(folder)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}), encoding="utf-8")
    return folder


def test_a_clip_sets_images_beside_their_prompts(clip: Path, rng: torch.Generator) -> None:
    extractor = load_extractor(f"transformers:{clip}", image_shape=(3, 16, 16))
    images = torch.rand(3, 3, 16, 16, generator=rng)
    features, prompts = extractor(images), extractor.requested(["a cat", "an extremely long prompt", "a cat"])
    assert features.pooled.shape == (3, 16) and features.embeddings is not None and features.embeddings.shape == (3, 6)
    assert prompts is not None and prompts.shape == (3, 6)
    assert torch.equal(prompts[0], prompts[2]) and not torch.allclose(prompts[0], prompts[1])
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(clip)(["a cat"], return_tensors="pt")
    with torch.inference_mode():
        whole = model(pixel_values=(images - 0.5) / 0.5, **tokens)
        cosine = torch.nn.functional.cosine_similarity(features.embeddings, prompts[:1])
        torch.testing.assert_close(cosine, whole.logits_per_image[:, 0] / model.logit_scale.exp(), rtol=1e-4, atol=1e-5)


def test_a_clip_without_tokenizer_serves_classes_and_refuses_prompts(clip: Path, tmp_path: Path, rng: torch.Generator) -> None:
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    extractor = load_extractor(f"transformers:{tmp_path}", image_shape=(3, 16, 16))
    assert extractor(torch.rand(1, 3, 16, 16, generator=rng)).pooled.shape == (1, 16)
    with pytest.raises(InputError, match="a text model and no tokenizer"):
        extractor.requested(["a cat"])


def test_videos_are_seen_frame_by_frame() -> None:
    """Means over frames, and beside them how much features move; a still video does not move."""
    extractor = load_extractor("embedded", image_shape=(1, 28, 28))
    frames = torch.rand(2, 3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    of_frames = extractor(frames.flatten(0, 1))
    found = extractor(frames)
    pooled = of_frames.pooled.unflatten(0, (2, 3))
    torch.testing.assert_close(found.pooled[:, :128], pooled.mean(1))
    torch.testing.assert_close(found.pooled[:, 128:], ((pooled[:, 1] - pooled[:, 0]).abs() + (pooled[:, 2] - pooled[:, 1]).abs()) / 2)
    assert found.logits is not None and found.logits.shape == (2, 10)
    still = extractor(frames[:, :1].repeat(1, 3, 1, 1, 1))
    assert still.pooled[:, 128:].abs().max() < 1e-4


def test_digits_with_a_border_are_digits() -> None:
    digits = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.pad(digits, (2, 2, 2, 2))
    plain, bordered = load_extractor("embedded", image_shape=(1, 28, 28)), load_extractor("embedded", image_shape=(1, 32, 32))
    torch.testing.assert_close(bordered(wide).pooled, plain(digits).pooled)
    assert plain.fingerprint == bordered.fingerprint
