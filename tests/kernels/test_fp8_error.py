"""Why the head's gradient products are not taken in eight bits: their errors, by recipe."""

from megaladder.tools.kernel_peers import fp8_error


def test_eight_bits_cost_ten_times_the_rounding_of_sixteen(monkeypatch):
    for name, value in (("TOKENS", 128), ("VOCAB", 8192)):
        monkeypatch.setattr(fp8_error, name, value)
    found = fp8_error.rows()
    assert len(found) == 8
    bf16 = [row for row in found if row.recipe.startswith("bf16")]
    assert all(max(row.d_hidden, row.d_weight) < 3e-3 and row.lost < 1e-3 for row in bf16)
    for row in found:
        if row not in bf16:
            assert 0.02 < row.d_hidden < 0.08 and 0.02 < row.d_weight < 0.08
            assert abs(row.d_hidden_bias) < 5e-3 and abs(row.d_weight_bias) < 5e-3
