"""From training to answers: what a model was taught comes back, after any medium, and then it stops."""

from __future__ import annotations

import torch
from random_documents import picture, sound
from small_model import make_module

from datamodules.packing import Collator, Piece, prototype_of
from onn_lightning.document import encode_document
from onn_lightning.nn import TrunkConfig

TAUGHT = [
    ([("image", picture(8, 8, 1))], "ab"),
    ([("image", picture(8, 8, 2))], "人工智能"),
    ([("audio", sound(1200, 3))], "bad🙂"),
    ([("audio", sound(900, 5)), ("image", picture(4, 4, 4))], "\nc"),
    ([("image", picture(4, 4, 4)), ("text", "d")], "的 "),
    ([], "cab"),
]


def test_a_trained_model_answers_what_it_was_taught_and_then_stops(modalities):
    module = make_module(modalities, TrunkConfig(hidden_size=32, num_layers=1, num_heads=2))
    rows = []
    for document, answer in TAUGHT:
        *before, last = document or [("text", "")]
        # a text at the end and its answer are one string; after a medium the answer is a text of its own
        whole = (
            [*before, ("text", last[1] + answer)] if last[0] == "text" else [*before, last, ("text", answer)]
        )
        rows.append([Piece(tuple(encode_document(whole, module.modalities)))])
    prototypes = {segment.modality: prototype_of(segment) for row in rows for segment in row[0].segments}
    batch = Collator(prototypes, list(module.modalities), max(len(row[0]) for row in rows), len(rows))(rows)

    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(60):
        loss = module.main_loss(module.predict_targets(batch, module(batch).hidden))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert [module.generate(document, max_new_tokens=20) for document, _ in TAUGHT] == [
        answer for _, answer in TAUGHT
    ]
