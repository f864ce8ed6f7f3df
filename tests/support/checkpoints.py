"""Small random checkpoints of `transformers`, as `save_pretrained` writes them; no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers

WIDTH: Final = 32
LAYERS: Final = 3
SIDE: Final = 32  # pixels
PATCH: Final = 4
WORDS: Final = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "the", "a", "red", "blue"),
    *("circle", "square", "shape", "color", "##s", "?", "emoji", "group", "does", "this", "of"),
)
BLOCKS: Final = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
PICTURES: Final = {"image_size": SIDE, "patch_size": PATCH}

Made = Callable[..., Path]


def save(network: Any, folder: Path, *others: Any) -> Path:
    """Write a network and whatever else belongs to it."""
    network.save_pretrained(folder)
    for other in others:
        other.save_pretrained(folder)
    return folder


def _drawn(family: Any, config: Any, seed: int) -> Any:
    """A network whose weights are all random, those too that would start at zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family(config)
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def square(kind: str, **changes: Any) -> Any:
    """Image processor of a kind that makes squares of `SIDE`."""
    size = {"height": SIDE, "width": SIDE}
    return getattr(transformers, kind)(size=size, **changes)


def cropping(kind: str) -> Any:
    """Image processor of a kind that crops squares of `SIDE`."""
    size = {"height": SIDE, "width": SIDE}
    return getattr(transformers, kind)(size={"shortest_edge": SIDE + 4}, crop_size=size)


def word_pieces() -> Any:
    """BERT's tokenizer over `WORDS`."""
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


def make_vit(folder: Path, seed: int = 0) -> Path:
    config = transformers.ViTConfig(**BLOCKS, **PICTURES)
    network = _drawn(transformers.ViTModel, config, seed)
    return save(network, folder, square("ViTImageProcessorPil"))


def make_dinov2(folder: Path, seed: int = 0) -> Path:
    config = transformers.Dinov2Config(**BLOCKS, image_size=2 * SIDE, patch_size=PATCH)
    network = _drawn(transformers.Dinov2Model, config, seed)
    return save(network, folder, cropping("BitImageProcessorPil"))


def make_clip(folder: Path, seed: int = 0) -> Path:
    text = {**BLOCKS, "vocab_size": len(WORDS), "eos_token_id": 3, "bos_token_id": 2}
    config = transformers.CLIPConfig(
        vision_config={**BLOCKS, **PICTURES}, text_config=text, projection_dim=WIDTH
    )
    network = _drawn(transformers.CLIPModel, config, seed)
    return save(network, folder, cropping("CLIPImageProcessorPil"))


def make_clip_vision(folder: Path, seed: int = 0) -> Path:
    config = transformers.CLIPVisionConfig(**BLOCKS, **PICTURES)
    network = _drawn(transformers.CLIPVisionModel, config, seed)
    return save(network, folder, cropping("CLIPImageProcessorPil"))


def make_siglip(folder: Path, seed: int = 0) -> Path:
    text = {**BLOCKS, "vocab_size": len(WORDS), "eos_token_id": 3, "bos_token_id": 2}
    config = transformers.SiglipConfig(vision_config={**BLOCKS, **PICTURES}, text_config=text)
    network = _drawn(transformers.SiglipModel, config, seed)
    return save(network, folder, square("SiglipImageProcessorPil"))


def make_siglip_vision(folder: Path, seed: int = 0) -> Path:
    config = transformers.SiglipVisionConfig(**BLOCKS, **PICTURES)
    network = _drawn(transformers.SiglipVisionModel, config, seed)
    return save(network, folder, square("SiglipImageProcessorPil"))


def make_bert(folder: Path, seed: int = 0) -> Path:
    config = transformers.BertConfig(**BLOCKS, vocab_size=len(WORDS), max_position_embeddings=40)
    return save(_drawn(transformers.BertModel, config, seed), folder, word_pieces())


def make_electra(folder: Path, seed: int = 0) -> Path:
    config = transformers.ElectraConfig(
        **BLOCKS, vocab_size=len(WORDS), max_position_embeddings=40, embedding_size=16
    )
    return save(_drawn(transformers.ElectraModel, config, seed), folder, word_pieces())


def make_distilbert(folder: Path, seed: int = 0) -> Path:
    config = transformers.DistilBertConfig(
        dim=WIDTH, n_layers=LAYERS, n_heads=2, hidden_dim=48, vocab_size=len(WORDS),
        max_position_embeddings=40,
    )  # fmt: skip
    return save(_drawn(transformers.DistilBertModel, config, seed), folder, word_pieces())


def make_roberta(folder: Path, seed: int = 0, kind: str = "Roberta") -> Path:
    letters = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdefghijklmnopqrstuvwxyz?")
    tokenizer = transformers.RobertaTokenizer(
        vocab={letter: i for i, letter in enumerate(letters)}, merges=[]
    )
    config = getattr(transformers, f"{kind}Config")(
        **BLOCKS, vocab_size=len(letters), max_position_embeddings=40, pad_token_id=1,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return save(_drawn(getattr(transformers, f"{kind}Model"), config, seed), folder, tokenizer)


def make_xlm_roberta(folder: Path, seed: int = 0) -> Path:
    return make_roberta(folder, seed, "XLMRoberta")


def make_whisper(folder: Path, seed: int = 0) -> Path:
    config = transformers.WhisperConfig(
        d_model=WIDTH, encoder_layers=LAYERS, encoder_attention_heads=2, encoder_ffn_dim=48,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=48, num_mel_bins=80,
        vocab_size=8, max_source_positions=1500, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    network = _drawn(transformers.WhisperModel, config, seed)
    return save(network, folder, transformers.WhisperFeatureExtractor(feature_size=80))


def make_wav2vec2(folder: Path, seed: int = 0, *, stable: bool = False) -> Path:
    config = transformers.Wav2Vec2Config(
        **BLOCKS, conv_dim=(8,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        vocab_size=8, do_stable_layer_norm=stable,
        feat_extract_norm="layer" if stable else "group",
    )  # fmt: skip
    network = _drawn(transformers.Wav2Vec2Model, config, seed)
    return save(network, folder, transformers.Wav2Vec2FeatureExtractor())


def make_wav2vec2_stable(folder: Path, seed: int = 0) -> Path:
    return make_wav2vec2(folder, seed, stable=True)


def make_hubert(folder: Path, seed: int = 0) -> Path:
    config = transformers.HubertConfig(
        **BLOCKS, conv_dim=(8,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        vocab_size=8,
    )  # fmt: skip
    network = _drawn(transformers.HubertModel, config, seed)
    return save(network, folder, transformers.Wav2Vec2FeatureExtractor())


def make_vilt(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """ViLT; ``changes`` of its configuration."""
    config = transformers.ViltConfig(
        **{**BLOCKS, **PICTURES, "vocab_size": len(WORDS), "max_position_embeddings": 40, **changes}
    )
    processor = transformers.ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=PATCH)
    network = _drawn(transformers.ViltModel, config, seed)
    return save(network, folder, processor, word_pieces())


def change_config(folder: Path, **changes: Any) -> None:
    """Rewrite values of ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


MAKERS: Final[Mapping[str, Mapping[str, Made]]] = {
    "image": {
        "vit": make_vit,
        "dinov2": make_dinov2,
        "clip": make_clip,
        "clip_vision_model": make_clip_vision,
        "siglip": make_siglip,
        "siglip_vision_model": make_siglip_vision,
    },
    "text": {
        "bert": make_bert,
        "roberta": make_roberta,
        "xlm-roberta": make_xlm_roberta,
        "distilbert": make_distilbert,
        "electra": make_electra,
    },
    "audio": {
        "whisper": make_whisper,
        "wav2vec2": make_wav2vec2,
        "hubert": make_hubert,
    },
}
"""Modality -> architecture -> what makes a checkpoint of it."""
