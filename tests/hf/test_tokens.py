"""What is noted of a forward pass, and what makes equal ids different."""

from __future__ import annotations

import pytest
import torch

from stratakv.hf.tokens import MASKED_BIT, describe, plain_ids, repeated_ranges

pytestmark = pytest.mark.hf

IDS = torch.tensor([[5, 6, 7]])


def note(held=0, held_mask=None, **arguments):
    return describe({"input_ids": IDS} | arguments, held, held_mask)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attention_mask": torch.ones(1, 7)},
        {"position_ids": torch.tensor([[4, 5, 6]])},
        {"position_ids": torch.tensor([4, 5, 6])},
        {"position_ids": torch.tensor([[[4, 5, 6]]] * 3)},
        {
            "use_cache": True,
            "output_attentions": False,
            "return_dict": True,
            "logits_to_keep": torch.tensor([1]),
        },
        {"labels": IDS, "cache_position": torch.tensor([4, 5, 6])},
        {"token_type_ids": torch.zeros(1, 3, dtype=torch.long)},
        {"pixel_values": None},
    ],
    ids=str,
)
def test_plain_passes_have_no_salt(arguments):
    assert note(held=4, **arguments).salts == [b""]
    assert note(held=4, **arguments).ids == [[5, 6, 7]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": torch.ones(1, 1, 3, 7, dtype=torch.bool)},
        {"attention_mask": {"full_attention": torch.ones(1, 1, 3, 7)}},
        {"attention_mask": torch.tensor([[1, 0, 1]])},
        {"position_ids": torch.tensor([[0, 1, 2]])},
        {"position_ids": torch.tensor([[4, 5]])},
        {"pixel_values": torch.ones(1, 3)},
        {"features": [torch.ones(1), {"a": torch.ones(2)}]},
        {"token_type_ids": torch.ones(1, 3)},
    ],
    ids=str,
)
def test_whatever_else_counts_is_salted(arguments):
    assert note(held=4, **arguments).is_salted


def test_salts_tell_values_shapes_and_rows_apart():
    salts = {
        note(pixel_values=torch.ones(2, 2)).salts[0],
        note(pixel_values=torch.ones(4)).salts[0],
        note(pixel_values=torch.zeros(4)).salts[0],
        note(other=torch.zeros(4)).salts[0],
    }
    assert len(salts) == 4
    rows = describe({"input_ids": IDS.repeat(2, 1), "pixel_values": torch.ones(2, 4)}, 0, None).salts
    assert rows[0] != rows[1]
    assert note(pixel_values=torch.ones(4)).salts == note(pixel_values=torch.ones(4)).salts


def test_masked_tokens_are_marked():
    mask = torch.tensor([[0, 0, 1]])
    result = note(attention_mask=mask, position_ids=torch.tensor([[1, 1, 0]]))
    assert result.ids == [[5 | MASKED_BIT, 6 | MASKED_BIT, 7]]
    assert not result.is_salted
    assert plain_ids(result.ids[0]) == [5, 6, 7]
    assert torch.equal(result.mask, mask.bool())
    step = describe(
        {
            "input_ids": IDS[:, :1],
            "attention_mask": torch.tensor([[0, 0, 1, 1]]),
            "position_ids": torch.tensor([[1]]),
        },
        3,
        result.mask,
    )
    assert step.ids == [[5]]
    assert not step.is_salted


def test_padding_that_changed_is_salted():
    held = torch.tensor([[False, True]])
    now = torch.tensor([[1, 1, 1, 1, 1]])
    assert note(held=2, held_mask=held, attention_mask=now).is_salted
    assert note(held=2, attention_mask=torch.tensor([[0, 1, 1, 1, 1]])).is_salted
    assert not note(held=2, held_mask=held, attention_mask=torch.tensor([[0, 1, 1, 1, 1]])).is_salted


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_ids": None, "inputs_embeds": torch.ones(1, 3, 4)},
        {"input_ids": None},
        {"input_ids": torch.ones(1, 4, 3, dtype=torch.long)},
        {"input_ids": torch.tensor([[-200, 3]])},
        {"input_ids": torch.ones(1, 0, dtype=torch.long)},
    ],
    ids=str,
)
def test_what_ids_do_not_describe_is_not_noted(arguments):
    assert describe(arguments, 0, None) is None


def test_repeated_ranges():
    def given(held, mask=None, positions=None):
        return repeated_ranges({"input_ids": IDS, "attention_mask": mask, "position_ids": positions}, held)

    assert given(3, mask=torch.ones(1, 3)) == [(0, 3), (0, 3)]
    assert given(5, mask=torch.ones(1, 4)) == [(1, 4), (0, 3)]
    assert given(3, mask=torch.ones(1, 6)) == []
    assert given(3, positions=torch.tensor([[0, 1, 2]])) == [(0, 3), (0, 3)]
    assert given(3, positions=torch.tensor([[3, 4, 5]])) == []
    assert given(3) == []
    assert given(0, mask=torch.ones(1, 3)) == []
    # A left-padded row counts its positions from its first real token.
    padded = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    assert given(6, mask=padded, positions=torch.tensor([[3, 4, 5]])) == []
