"""Laws of every encoder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hffm_flower.data import DATASETS, TASKS
from hffm_flower.data.dataset import Item, text_item
from hffm_flower.models.encoders import ENCODERS, Encoder, Weights
from hffm_flower.models.encoders.encoder import BATCH, Tokens
from tests.support.raw_items import items, window

CPU = torch.device("cpu")
WEIGHTS: tuple[Weights, ...] = ("pretrained", "random")
LAWS = [pytest.param(n, w, id=f"{n}-{w}") for n in ENCODERS for w in WEIGHTS]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def equal(left: dict[str, Tokens], right: dict[str, Tokens], rows: Sequence[int]) -> bool:
    return all(
        torch.equal(left[s].index(rows).values, right[s].values)
        and torch.equal(left[s].index(rows).mask, right[s].mask)
        for s in left
    )


@pytest.mark.parametrize(("name", "weights"), LAWS)
def test_outputs_are_as_declared_frozen_and_the_items_own(name: str, weights: Weights) -> None:
    encoder = ENCODERS[name](weights, 3, CPU)
    some = items(encoder.modality, 2 * BATCH + 3)
    stream_before = torch.random.get_rng_state()
    encoded = encoder.encode(some)
    assert torch.equal(torch.random.get_rng_state(), stream_before)
    assert encoded.keys() == encoder.streams.keys()
    for stream, shape in encoder.streams.items():
        tokens = encoded[stream]
        assert tokens.values.shape == (len(some), shape.tokens, shape.width)
        assert (tokens.values.dtype, tokens.mask.dtype) == (torch.float32, torch.bool)
        assert tokens.mask.shape == tokens.values.shape[:2]
        assert tokens.mask[:, 0].all()
        assert tokens.values.isfinite().all()
        assert not tokens.values.requires_grad
        assert not tokens.values.is_inference()  # may be trained on
        assert not tokens.values[~tokens.mask].any()
        assert tokens.values.abs().max() < 65504  # fits the cache's float16
        assert tokens.values.std(0).mean() > 0.05  # tells items apart
    # Neither place nor companions nor their number change an item's bits.
    for rows in (list(range(len(some)))[::-1], [4], [7, 1, 1, 0, 12], list(range(3, 3 + BATCH))):
        assert equal(encoded, encoder.encode([some[i] for i in rows]), rows)
    assert equal(encoded, ENCODERS[name](weights, 3, CPU).encode(some[:2]), [0, 1])


@pytest.mark.parametrize(("name", "weights"), LAWS)
def test_no_items_give_no_rows(name: str, weights: Weights) -> None:
    encoder = ENCODERS[name](weights, 0, CPU)
    for stream, tokens in encoder.encode([]).items():
        shape = encoder.streams[stream]
        assert tokens.values.shape == (0, shape.tokens, shape.width)
        assert tokens.mask.shape == (0, shape.tokens)


@pytest.mark.parametrize("name", [n for n, e in ENCODERS.items() if e.cacheable])
def test_seed_draws_the_random_weights_only(name: str) -> None:
    def made(weights: Weights, seed: int) -> Encoder:
        return ENCODERS[name](weights, seed, CPU)

    prints = [made(w, s).fingerprint() for w in WEIGHTS for s in (0, 1)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    some = items(ENCODERS[name].modality, 2)
    outputs = [made("random", s).encode(some) for s in (0, 0, 1)]
    assert equal(outputs[0], outputs[1], [0, 1])
    assert not equal(outputs[0], outputs[2], [0, 1])


@pytest.mark.parametrize("name", ENCODERS)
def test_wrong_input_is_told(name: str) -> None:
    with pytest.raises(TypeError, match=r"encoder reads .*, not"):
        ENCODERS[name]("random", 0, CPU).encode([Item("0" * 64, lambda: np.zeros(3, np.float32))])


def test_names_and_fingerprints_load_no_weights() -> None:
    code = (
        "import sys, torch\n"
        "from hffm_flower.models.encoders import ENCODERS\n"
        "for e in ENCODERS.values(): e('pretrained', 0, torch.device('cpu')).fingerprint()\n"
        "heavy = {'transformers', 'tokenizers', 'efficientnet_lite_pytorch', 'onnx', 'livekit'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for encoder in ENCODERS.values():
        encoder("pretrained", 0, CPU).encode(items(encoder.modality, 1))
    assert capfd.readouterr() == ("", "")


def test_text_is_lower_cased_and_masked() -> None:
    encoder = ENCODERS["minilm"]("pretrained", 0, CPU)
    texts = ["A Red shape", "a red shape", "a " * 30]
    tokens = encoder.encode([text_item(t) for t in texts])["text"]
    assert torch.equal(tokens.values[0], tokens.values[1])
    assert tokens.mask.sum(1).tolist() == [5, 5, 12]


def test_text_states_are_those_of_the_whole_model() -> None:
    import transformers
    from safetensors.torch import load_file

    from hffm_flower.assets import asset_root

    folder = asset_root("minilm") / "model"
    config = transformers.BertConfig.from_json_file(folder / "config.json")
    whole = transformers.BertModel(config, add_pooling_layer=True)
    whole.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    whole.train(False)
    words = transformers.AutoTokenizer.from_pretrained(folder)(
        "what is drawn here?", return_tensors="pt"
    )
    with torch.inference_mode():
        expected = whole(**words, output_hidden_states=True).hidden_states[4]
    tokens = ENCODERS["minilm"]("pretrained", 0, CPU).encode([text_item("what is drawn here?")])
    assert tokens["text"].mask.sum() == expected.shape[1]
    ours = tokens["text"].values[:, : expected.shape[1]]
    assert torch.allclose(ours, expected, atol=1e-4)


def test_sensor_patches_keep_time_order() -> None:
    tokens = ENCODERS["patches"]("random", 0, CPU).encode(items("sensor", 2))["sensor"]
    assert tokens.values[1].numpy().tolist() == window(1).reshape(10, 90).tolist()


def test_questions_fit_the_text_encoder() -> None:
    from tokenizers import Tokenizer

    from hffm_flower.assets import asset_root

    tokenizer = Tokenizer.from_file(str(asset_root("minilm") / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    questions = set()
    for task in ("easyvqa10", "emojivqa10"):
        data = DATASETS[TASKS[task].dataset](task, train_per_answer=100, test_per_answer=5, seed=0)
        questions |= {str(i.load()) for i in data.items("text", "train", range(1000))}
    lengths = {q: len(tokenizer.encode(q).ids) for q in questions}
    # One question of Easy-VQA is longer by its question mark.
    assert {q for q, n in lengths.items() if n > 12} <= {"is there not a teal shape in the image?"}
    assert max(lengths.values()) <= 13
