"""Modules that cannot be trained as asked are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.test_bad_input import nothing_starts, refused

assert nothing_starts  # a fixture for all tests here

LORA, EXPERTS = "model.adapter=lora", "model.adapter=experts"
SUMMABLE = ["server.lora-rule", "d2d.summing = false", "lora-ffa, lora-alternate, lora-share-a"]

CASES: dict[str, tuple[list[str], list[str]]] = {
    "rank of zero": ([LORA, "model.lora-ranks=0"], ["model.lora-ranks", "'0'", "equal to 1"]),
    "rank that is a word": ([LORA, "model.lora-ranks=four"], ["model.lora-ranks", "'four'"]),
    "no rank": ([LORA, "model.lora-ranks="], ["model.lora-ranks", "at least 1 item"]),
    "rank above the layer": (
        [LORA, "model.lora-ranks=8 385"],
        ["model.lora-ranks", "rank 385", "'query'", "allowed: 1 to 384"],
    ),
    "target that matches nothing": (
        [LORA, "model.lora-targets=query kee"],
        ["model.lora-targets", "'kee'", "query, key, value, attention_out, up, down"],
    ),
    "no target": (
        [LORA, "model.lora-targets="],
        ["model.lora-targets", "no projection is named", "query, key, value"],
    ),
    "tuned layer that matches nothing": (
        ["model.tune=image=lora:2", "model.tune-targets=attention.*"],
        ["model.tune-targets", "attention.*", "0._expand_conv, 0._project_conv, head.conv"],
    ),
    "tuned modality without encoder": (
        ["model.encoders=image=lite0 text=minilm sensor=patches", "model.tune=audio=last:1"],
        ["model.tune", "'audio' has no encoder", "image, text, sensor"],
    ),
    "tuned encoder without weights": (
        ["model.tune=sensor=last:1"], ["model.tune", "'patches' has no weights to tune"],
    ),
    "too many blocks": (
        ["model.tune=image=last:99"], ["model.tune", "last 99", "'lite0'", "0 to 16"],
    ),
    "tuned with rank zero": (
        ["model.tune=image=lora:0"], ["model.tune", "'lora:0'", "'last:N', 'lora:R' or 'lora:R:N'"],
    ),
    "tuned by nothing known": (["model.tune=image=foo"], ["model.tune", "'foo'", "'last:N'"]),
    "tuned with a rank above a layer": (
        ["model.tune=image=lora:999"], ["model.tune", "rank 999", "allowed: 1 to 192"],
    ),
    "more experts per example than experts": (
        [EXPERTS, "model.experts=2", "model.experts-per-example=3"],
        ["model.experts-per-example", "3 is above the number of experts, 2"],
    ),
    "experts above the devices' memory": (
        [EXPERTS, "tree.memory-mib=0.1"],
        ["tree.memory-mib (from --set", "4 experts of 0.774", "MiB short (device", "devices 0, 1"],
    ),
    "experts above the edges' memory": (
        [EXPERTS, "tree.edge-memory-mib=0.1"],
        ["tree.edge-memory-mib (from --set", "MiB short (edge"],
    ),
    "too few experts on a device": (
        [EXPERTS, "model.experts=30", "model.experts-held=1"],
        ["model.experts-held (from --set", "at most 1 experts", "30 experts", "or more"],
    ),
    "ranks above the memory": (
        [LORA, "tree.memory-mib=0.1 9"],
        ["tree.memory-mib", "rank 8 takes 0.375 MiB", "has 0.1 MiB: 0.275 MiB short"],
    ),
    "memory below zero": ([LORA, "tree.memory-mib=4 -1"], ["tree.memory-mib", "'-1'", "than 0"]),
    "mixed ranks with one common factor": (
        [LORA, "model.lora-ranks=2 4", "server.lora-rule=lora-ffa"],
        ["model.lora-ranks", "lora-ffa needs one rank", "2 4", "lora-exact, lora-naive"],
    ),
    "optimizer of factors": (
        [LORA, "server.optimizer=adapter=adam:0.1"],
        ["server.optimizer", "adapter", "lora-exact", "mean"],
    ),
    "one pattern of several that matches nothing": (
        ["model.tune=image=lora:2", "model.tune-targets=* typo"],
        ["model.tune-targets", "typo matches no layer"],
    ),
    "median of factors": (
        [LORA, "server.rule=median"], ["server.rule", "'median'", "lora-exact", "'mean'"],
    ),
    "factors in different places": (
        [LORA, "server.lora-rule=lora-alternate", "rounds=8",
         "server.modules=adapter/*.A=edge adapter/*.B=cloud:4"],
        ["server.modules", "adapter/fusion.4.A", "different places"],
    ),
    "heads first where nothing stays": (
        ["train.head-epochs=1"], ["train.head-epochs", "no module stays", "head/*=device"],
    ),
    "heads first where everything stays": (
        ["train.head-epochs=1", "method=local"], ["train.head-epochs", "every module stays"],
    ),
    "unknown prompt": (
        ["model.prompts=foo=2"], ["model.prompts", "'foo'", "task, modality, missing"],
    ),
    "prompt of no tokens": (["model.prompts=task=0"], ["model.prompts", "'0'", "1 to 64"]),
    "backbone without layers": (
        [LORA, "model.backbone=small"], ["model.adapter", "'small'", "'lora'", "minilm-fusion"],
    ),
    "memory for nothing": (
        ["model.backbone=small", "tree.memory-mib=4"],
        ["tree.memory-mib", "adapter 'bottleneck' in backbone 'small'", "no effect"],
    ),
    "memory without adapters": (
        ["model.adapter=none", "tree.memory-mib=4"], ["tree.memory-mib", "'none'", "no effect"],
    ),
    "backbone of no name": (["model.backbone=hf:"], ["model.backbone", "hf:OWNER/NAME"]),
    "encoder of no name": (
        ["model.encoders=image=hf: text=minilm sensor=patches"], ["model.encoders", "hf:FOLDER"],
    ),
    "every modality dropped": (
        ["train.modality-dropout=1.0"], ["train.modality-dropout", "'1.0'", "less than 1"],
    ),
    "unknown rule": (
        [LORA, "server.lora-rule=lora-mean"],
        ["server.lora-rule", "'lora-mean'", "lora-exact, lora-naive, lora-ffa, lora-alternate"],
    ),
    "relay that sums pairs": ([LORA, "d2d.plan=relay"], ["'relay'", *SUMMABLE]),
    "gossip of pairs": ([LORA, "d2d.plan=gossip"], ["'gossip'", *SUMMABLE]),
    "cooperative training of a tuned encoder": (
        ["model.tune=text=lora:4", "d2d.plan=cooperative"], ["'cooperative'", *SUMMABLE],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_module(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, expected = CASES[name]
    words = [word for setting in settings for word in ("--set", setting)]
    text = refused(monkeypatch, capsys, "run", *words, "--out", "out")
    for part in expected:
        assert part in text
    assert not Path("out").exists()
