"""What is said of layer-wise pruning and of costs on pages."""

import re

import test_costs
import test_ratios

from lthlab import costs, findings, ratios


def words(page):
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))


def test_the_sign_of_a_setting_is_said_as_it_is_measured():
    kept = [([8, 20, 2], [6, 20, 4]), ([9, 20, 1], [6, 20, 4])]
    masks = [
        (side, {"find_lr": rate, "replicate": replicate})
        for replicate, sides in enumerate(kept)
        for side, rate in zip(sides, (0.02, 0.3), strict=True)
    ]
    frame = test_ratios.layers(*masks, sparsity=0.7).assign(data="d")
    said = words(findings.settings(frame))
    assert "n on d, OMP masks, level 5 (30 % of the prunable weights left)" in said
    assert "found with learning rate 0.02 minus 0.3 (in points, paired, 95 % t interval, n = 2 replicates)" in said
    assert "l1.weight −25.0 [−88.5, +38.5], no difference seen; l3.weight +5.0 [−7.7, +17.7]" in said
    assert "the first minus the last −30.0" in said
    reverse = frame.assign(find_lr=0.32 - frame["find_lr"])
    assert "l1.weight +25.0 [−38.5, +88.5], no difference seen" in words(findings.settings(reverse))
    assert "All masks were found with the same settings" in findings.settings(frame[frame["find_lr"] == 0.3])


def test_panels_that_differ_in_another_setting_are_said_apart():
    masks = [
        ([8 - 2 * (lr > 0.1) * sign - r, 20 + r, 2], {"find_lr": lr, "find_weight_decay": decay, "replicate": r})
        for decay, sign in ((0.0, 1), (0.1, -1)) for lr in (0.1, 0.2) for r in range(3)
    ]  # fmt: skip
    frame = test_ratios.layers(*masks, sparsity=0.7)
    said = words(findings.settings(frame))
    assert said.count("l1.weight −20.0") == 1 and said.count("l1.weight +20.0") == 1
    assert said.count("the first minus the last −20.0") == 1 and said.count("the first minus the last +20.0") == 1


def test_layers_that_are_cut_through_are_named():
    masks = [([8, 22, 0], {}), ([8, 20, 2], {"replicate": 1}), ([8, 20, 2], {"method": "IMP"})]
    frame = test_ratios.layers(*masks, sparsity=0.7).assign(data="d")
    assert (
        "OMP masks at level 5 (30 % of the prunable weights left), found at 0.1, keep nothing of l3.weight in 1 of 2"
        in (words(findings.cut_through(frame)))
    )
    assert "None of 3 masks cuts through a layer" in findings.cut_through(frame.assign(kept=1))


def test_how_far_shares_still_move_is_shown_by_step():
    masks = [([6, 20, 4], {"prune_at": "12ep"}), ([5, 20, 5], {"prune_at": "1ep"}), ([7, 16, 7], {"prune_at": "3ep"})]
    steps = ratios.by_step(test_ratios.layers(*masks, sparsity=0.7).assign(data="d"))
    said = words(findings.still_moving(steps))
    assert "after epoch 1 after epoch 3 after epoch 12" in said and "0.1 20.0 8.7 0.0" in said
    assert "nothing" in findings.still_moving(steps[:0])


def test_the_share_of_an_advantage_is_shown_with_its_interval():
    pairs = ratios.contrasts(test_ratios.trained().assign(network="n", data="d"))
    late = pairs[pairs["prune_at"] == "4ep"]
    (row,) = ratios.carried(late, ["level"]).to_dict("records")
    text = "{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * row[name] for name in ("mean", "low", "high")))
    said = words(findings.carried(late))
    assert f"0.1, trained at 0.2 {text}" in said and "30 % left" in said and "n on d, n = 3 replicates" in said
    loose = late.assign(
        value=late["value"].where(late["ticket"] != "layer − global", [0.9, -0.8, 0.1] * (len(late) // 3))
    )
    assert "%, interval wider than 500 points" in findings.carried(loose)
    same = late["ticket"] == "ticket − global"
    unseen = late.assign(value=late["value"].where(~same, [0.1, -0.1, 0.05] * (len(late) // 3)))
    assert "advantage not seen" in findings.carried(unseen)
    assert "nothing" in findings.carried(late[:0])


def test_what_searches_cost_is_said_with_what_they_buy():
    frame = costs.at_dense_best(test_costs.tidy())
    said = words(findings.searches(frame))
    assert "n on d: LT on IMP minus LT on OMP masks (in points, paired, 95 % t interval, n = 3)" in said
    assert "40 against 20 epochs at level 2 (64 % of the prunable weights left): +2.0 [+2.0, +2.0]" in said
    assert "100 against 20 epochs at level 5 (32.8 % of the prunable weights left): +10.0" in said
    worse = frame.assign(value=frame["value"].where(frame["method"] != "IMP", frame["value"] - 0.3))
    assert "+2.0 [+2.0, +2.0];" in said and "−28.0 [−28.0, −28.0];" in words(findings.searches(worse))
    assert "no LT on masks of both" in findings.searches(frame[frame["method"] != "IMP"])


def test_the_bill_lists_every_ticket_once():
    page = findings.bill(test_costs.tidy())
    lines = re.findall("<tr.*?</tr>", page, re.DOTALL)
    heads, *rows = [re.findall("<t[hd]>(.*?)</t[hd]>", line, re.DOTALL) for line in lines]
    assert len(rows) == len(costs.table(test_costs.tidy())) == 14
    told = [dict(zip(heads, row, strict=True)) for row in rows]
    assert all(int(row["in all"]) == int(row["search epochs"]) + int(row["training epochs"]) for row in told)
    assert max(float(row["accuracy (%)"]) for row in told) == 91 and 'download="costs.csv"' in page
    assert "nan" not in page and "None" not in page
    assert "nothing" in findings.bill(test_costs.tidy()[:0])


def test_one_replicate_has_no_interval():
    frame = test_costs.tidy()
    said = words(findings.searches(costs.at_dense_best(frame[frame["replicate"] == 0])))
    assert "(in points, paired, n = 1)" in said and ": +2.0;" in said and "nan" not in said
    assert "nan" not in words(findings.bill(frame[frame["replicate"] == 0]))
