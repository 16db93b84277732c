"""Names that wrappers of networks put before those of tensors."""

import pytest
import torch

from fp_lightning.errors import InputError
from fp_lightning.weights.checkpoints import trained_weights
from fp_lightning.weights.tensorfiles import plain_names


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_forward_module.", "module._orig_mod.", ""])
def test_wrappers_are_left_out(wrapper):
    assert plain_names({f"{wrapper}conv.weight": 1}, "a") == {"conv.weight": 1}


def test_only_whole_words_at_the_start_are_wrappers():
    names = {"modules.a": 1, "conv.module.a": 2, "unet._orig_mod.b": 3}
    assert plain_names(names, "a") == {"modules.a": 1, "conv.module.a": 2, "unet.b": 3}


def test_two_names_that_become_one_are_refused():
    with pytest.raises(InputError, match=r"w\.ckpt holds a twice, once as module\.a"):
        plain_names({"a": 1, "module.a": 2}, "w.ckpt")


def test_a_wrapped_checkpoint_has_the_weights_of_its_editor():
    state = {"module.editor.prior.unet.a": torch.ones(2), "module.editor.control_encoder._orig_mod.b": torch.zeros(1)}
    trained, _ = trained_weights({"state_dict": state}, "w.ckpt", "auto")
    assert torch.equal(trained["unet"]["a"].read(), torch.ones(2))
    assert trained["control_encoder"].keys() == {"b"}
