"""Sizes by the config alone, the layers that carry a table, and what is written of it."""

import json

import pytest

import retoken
from retoken.errors import ConfigError


def test_sizes():
    plain, mixed = retoken.ReTokenConfig(), retoken.MoRTConfig(num_modulators=5, top_k=3, injection_delay=2)
    assert plain.table_params(100, 8, 6) == 6 * 100 * 8
    assert plain.other_params(8, 6) == 6 * 8
    assert mixed.table_params(100, 8, 6) == 4 * 5 * 100 * 8
    assert mixed.other_params(8, 6) == 4 * (8 + 5 * 8)
    assert mixed.activation == 3 / 5
    assert retoken.ReTokenConfig(layers=[5, 1]).table_params(100, 8, 6) == 2 * 100 * 8


def test_table_layers():
    assert retoken.ReTokenConfig().table_layers(3) == (0, 1, 2)
    assert retoken.MoRTConfig(injection_delay=2).table_layers(3) == (0,)
    assert retoken.MoRTConfig(injection_delay=1, layers=(0, 1)).table_layers(3) == (0, 1)
    assert retoken.ReTokenConfig(layers=range(2)).layers == (0, 1)
    with pytest.raises(ConfigError, match="below the backbone's 3 layers"):
        retoken.MoRTConfig(injection_delay=3).table_layers(3)


@pytest.mark.parametrize(
    "config", [retoken.ReTokenConfig(layers=(3, 1)), retoken.MoRTConfig(router_input="block_input")]
)
def test_what_is_written_is_json_and_comes_back(config):
    written = json.loads(json.dumps(config.to_dict()))
    assert written["type"] == config.type and written["format_version"] == 1
    assert retoken.config_from_dict(written) == config


def test_the_literal_formula_is_one_option_away():
    """As printed: an L2 norm; n_e 5 and K 3; lambda 1e-4."""
    plain, mixed = retoken.ReTokenConfig.paper(), retoken.MoRTConfig.paper()
    assert plain.norm == mixed.norm == "l2"
    assert plain.init_scale == mixed.init_scale == 1.0
    assert (mixed.num_modulators, mixed.top_k, mixed.router_input) == (5, 3, "post_attention")
    assert (mixed.injection_delay, mixed.balance_coef) == (0, 1e-4)


def test_configs_are_values():
    assert retoken.ReTokenConfig(layers=[1, 0]) == retoken.ReTokenConfig(layers=(0, 1))
    assert hash(retoken.MoRTConfig()) == hash(retoken.MoRTConfig())
    with pytest.raises(AttributeError):
        retoken.ReTokenConfig().norm = "l2"
