"""Text encoders that answer from memory: the same answers, whatever stands beside a prompt, and no weights in between."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model, T5Config, T5EncoderModel

from sedaq import SamplingConfig, load
from sedaq.models import encoded_prompts
from sedaq.models.encoded_prompts import EncodedPrompts


def clip() -> nn.Module:
    torch.manual_seed(0)
    config = CLIPTextConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, vocab_size=50)
    return CLIPTextModel(config).eval()


def t5() -> nn.Module:
    torch.manual_seed(0)
    return T5EncoderModel(T5Config(d_model=8, d_ff=16, d_kv=4, num_heads=2, num_layers=2, vocab_size=50)).eval()


IDS = torch.randint(0, 50, (3, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [clip, t5])
@torch.inference_mode()
def test_answers_are_the_encoders_own(make: Any) -> None:
    encoder = make()
    wanted = encoder(IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True)
    EncodedPrompts(encoder, make)
    for _ in range(2):
        got = encoder(IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True)
        assert type(got) is type(wanted)
        torch.testing.assert_close(got.last_hidden_state, wanted.last_hidden_state)
        torch.testing.assert_close(got.hidden_states, wanted.hidden_states)
        torch.testing.assert_close(got[0], wanted[0])


@torch.inference_mode()
def test_a_prompts_answer_does_not_depend_on_others() -> None:
    encoder = clip()
    EncodedPrompts(encoder, clip)
    one = encoder(IDS[1:2])
    several = encoder(IDS[[1, 0, 1]])
    assert torch.equal(several[0][0], one[0][0]) and torch.equal(several[0][2], one[0][0])
    assert not torch.equal(several[0][1], one[0][0])


@torch.inference_mode()
def test_other_settings_are_other_questions() -> None:
    encoder = clip()
    EncodedPrompts(encoder, clip)
    assert encoder(IDS).hidden_states is None
    assert len(encoder(IDS, output_hidden_states=True).hidden_states) == 3


@torch.inference_mode()
def test_weights_go_and_come_back_for_a_new_prompt() -> None:
    encoder, loads = clip(), []
    wanted = encoder(IDS)

    def load_again() -> nn.Module:
        loads.append(1)
        return clip()

    kept = EncodedPrompts(encoder, load_again)
    kept.release()
    assert not kept.released, "it has not been asked for anything"
    encoder(IDS[:2])
    kept.release()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 0 and encoder.dtype == torch.float32
    torch.testing.assert_close(encoder(IDS[:2])[0], wanted[0][:2])
    assert not loads
    torch.testing.assert_close(encoder(IDS)[0], wanted[0])
    assert loads == [1] and sum(parameter.numel() for parameter in encoder.parameters()) > 0


class Odd(nn.Module):
    """Answers with more than tensors of a row a prompt."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.ones(3)), answer

    def forward(self, x: torch.Tensor) -> Any:
        return x.float().mean(1) * self.weight[0], self.answer


@pytest.mark.parametrize("answer", ["text", torch.zeros(7), torch.tensor(1.0)], ids=["text", "rows", "number"])
def test_encoders_that_cannot_be_kept_stay(answer: Any) -> None:
    encoder = Odd(answer)
    kept = EncodedPrompts(encoder, lambda: Odd(answer))
    for _ in range(2):
        assert torch.equal(encoder(IDS)[0], IDS.float().mean(1))
        kept.release()
        assert encoder.weight.numel() == 3


def test_more_prompts_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_prompts, "MAX_BYTES", 500)
    encoder = clip()
    wanted = encoder(IDS)[0]
    kept = EncodedPrompts(encoder, clip)
    torch.testing.assert_close(encoder(IDS)[0], wanted)
    with torch.inference_mode():
        assert torch.equal(encoder(IDS[2:])[0], encoder(IDS)[0][2:]), "also those that are not kept are encoded by themselves"
    kept.release()
    assert kept.stays and not kept.released


def test_signature_and_copies() -> None:
    encoder = clip()
    EncodedPrompts(encoder, clip)
    assert "attention_mask" in inspect.signature(encoder.forward).parameters
    again = copy.deepcopy(encoder)
    again.get_submodule("final_layer_norm" if hasattr(encoder, "final_layer_norm") else "text_model.final_layer_norm").weight.data.zero_()
    with torch.inference_mode():
        assert not torch.equal(again(IDS)[0], encoder(IDS)[0])


def test_a_pipelines_text_encoder_is_let_go() -> None:
    subject = load("digits-sd")
    encoder = subject.adapter.pipeline.text_encoder
    first = subject.sample(SamplingConfig(steps=2), seed=0, n_images=2)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 0
    assert torch.equal(subject.sample(SamplingConfig(steps=2), seed=0, n_images=2), first)
    others = subject.sample(SamplingConfig(steps=2), seed=0, start=20, n_images=2)
    assert torch.equal(load("digits-sd").sample(SamplingConfig(steps=2), seed=0, start=20, n_images=2), others)


def test_a_text_encoder_that_is_quantized_stays() -> None:
    subject = load("digits-sd", components=("unet", "text_encoder"))
    subject.sample(SamplingConfig(steps=2), seed=0, n_images=1)
    assert all(parameter.numel() for parameter in subject.adapter.pipeline.text_encoder.parameters())


@torch.inference_mode()
def test_arguments_of_other_names_are_other_questions() -> None:
    encoder = clip()
    EncodedPrompts(encoder, clip)
    assert encoder(IDS, output_attentions=True).hidden_states is None
    assert encoder(IDS, output_hidden_states=True).hidden_states is not None


@torch.inference_mode()
def test_decoders_that_would_keep_a_cache_are_kept_too() -> None:
    def gemma() -> nn.Module:
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
        return Gemma2Model(Gemma2Config(vocab_size=50, num_hidden_layers=2, **sizes)).eval()

    encoder = gemma()
    wanted = encoder(IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True)
    kept = EncodedPrompts(encoder, gemma)
    got = encoder(IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True)
    torch.testing.assert_close(got.hidden_states, wanted.hidden_states)
    kept.release()
    assert kept.released


@torch.inference_mode()
def test_who_saves_a_released_encoder_gets_its_weights(tmp_path: Path) -> None:
    encoder = clip()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    kept = EncodedPrompts(encoder, clip)
    encoder(IDS)
    kept.release()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    kept.release()
    encoder.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = CLIPTextModel.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())
    torch.testing.assert_close(loaded(IDS)[0], encoder(IDS)[0])  # products differ by where their numbers lie in memory
