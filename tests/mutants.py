"""Inject one fault at a time into a copy of the package and see a named test fail by its own assertion.

Run as `make mutants`. A fault whose text is not found exactly once, a test that is red without the fault, one that
stays green with it, or one that fails for another reason than an assertion of its own is a failure.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    """A fault: in which module which text becomes which other, and the test that must notice."""

    fault: str
    module: str
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant(
        "states that later parts start from are not exported",
        "runs",
        "frozenset(step for step in need.keep if self._used(train, step))",
        "frozenset()",
        "tests/test_compact.py::test_a_part_goes_on_in_another_store_to_the_same_bits[find_tickets]",
    ),
    Mutant(
        "imported results take the place of others of the same values",
        "compact",
        'known[name]["blake2b"] != entry["blake2b"]',
        'known[name]["size"] != entry["size"]',
        "tests/test_compact.py::test_other_results_of_the_same_values_are_refused",
    ),
    Mutant(
        "a paper's number has no spread of its own",
        "comparison",
        "math.sqrt(1 / n + 1 / number.origin.runs)",
        "math.sqrt(1 / n)",
        "tests/test_comparison.py::test_the_reach_is_that_of_a_mean_of_as_many_runs_with_the_spread_pooled",
    ),
    Mutant(
        "a claim is supported by an interval that includes zero",
        "predicates",
        '"supports" if low > 0 else',
        '"supports" if high > 0 else',
        "tests/test_predicates.py::test_what_scatters_is_left_open",
    ),
    Mutant(
        "studies on digits stand among those on the papers' data",
        "conclusions",
        "(small if digits else real)",
        "(real if digits else real)",
        "tests/test_conclusions.py::test_studies_on_digits_are_told_from_those_on_the_papers_data",
    ),
    Mutant(
        "a null in the small form of a study asks for what it should take away",
        "spec",
        "found[number].merged(layer, removing=True)",
        "found[number].merged(layer)",
        "tests/test_mini.py::test_null_takes_away_and_what_is_not_named_stays",
    ),
    Mutant(
        "trainings of one study count as those of several",
        "bills",
        "sum(users[train] > 1 for train in own)",
        "sum(users[train] > 0 for train in own)",
        "tests/test_bills.py::test_what_several_studies_ask_for_is_counted_once",
    ),
    Mutant(
        "crops by the position within what a process reads",
        "streams",
        "skip((first + place) * images.NUMBERS)",
        "skip(place * images.NUMBERS)",
        "tests/test_streams.py::test_resized_crops_depend_on_replicate_epoch_and_position",
    ),
    Mutant(
        "a step's images where those of the step before are",
        "streams",
        "place = (first // size % 2 * len(orders) + row)",
        "place = row",
        "tests/test_streams.py::test_resized_crops_depend_on_replicate_epoch_and_position",
    ),
    Mutant(
        "random labels drawn for the images that are used",
        "data",
        "random_labels(len(y), facts.classes, described.random_labels)[train]",
        "random_labels(len(train), facts.classes, described.random_labels)",
        "tests/test_data.py::test_random_labels_are_uniform_fixed_and_those_of_single_images",
    ),
    Mutant(
        "halves of the whole in place of halves of each class",
        "data",
        'torch.arange(len(labels))[part == "b" :: 2 if part else 1]',
        'torch.arange(len(labels)).chunk(2 if part else 1)[part == "b"]',
        "tests/test_data.py::test_halves_are_disjoint_and_have_2500_images_of_each_class",
    ),
    Mutant(
        "momentum of newly pruned weights kept",
        "lanes",
        "for rows in (self.weights, *self.moments):",
        "for rows in (self.weights,):",
        "tests/test_engine.py::test_pruning_clears_the_optimizers_buffers",
    ),
    Mutant(
        "gradients not masked",
        "lanes",
        "gradient.masked_fill_(self.pruned, 0)",
        "pass",
        "tests/test_engine.py::test_training_is_that_of_plain_torch",
    ),
    Mutant(
        "mask applied only at the start",
        "lanes",
        "        if self.pruned is not None:\n            gradient",
        "        if False:\n            gradient",
        "tests/test_engine.py::test_training_is_that_of_plain_torch",
    ),
    Mutant(
        "decay on pruned weights",
        "lanes",
        "gradient.masked_fill_(self.pruned, 0)",
        "gradient.masked_fill_(self.pruned, 5e-4)",
        "tests/test_engine.py::test_training_is_that_of_plain_torch",
    ),
    Mutant(
        "bits of inputs not compared",
        "runs",
        'if _checksum(store, *path.split("/")) not in (None, checksum):',
        "if False:",
        "tests/test_lab.py::test_what_was_made_from_other_bits_is_stale",
    ),
    Mutant(
        "every mask goes to the first replica",
        "replicas",
        "lane.prune(slot, mask)",
        "lane.prune(0, mask)",
        "tests/test_engine.py::test_training_is_that_of_plain_torch",
    ),
    Mutant(
        "decay left out of the update",
        "lanes",
        "decay = recipe.weight_decay if",
        "decay = 0.0 if",
        "tests/test_engine.py::test_training_is_that_of_plain_torch",
    ),
    Mutant(
        "one replica's rate used for all",
        "lanes",
        "lr=lrs[slot], **settings",
        "lr=lrs[0], **settings",
        "tests/test_engine.py::test_training_is_that_of_plain_torch",
    ),
    Mutant(
        "decay of AdamW added to the gradient",
        "lanes",
        'if self.recipe.optimizer == "adamw":',
        "if False:",
        "tests/test_engine.py::test_training_is_that_of_plain_torch",
    ),
    Mutant(
        "labels of mixed images left whole",
        "data",
        "return blend(x), blend(truth)",
        "return blend(x), truth",
        "tests/test_engine.py::test_training_is_that_of_plain_torch",
    ),
    Mutant(
        "images mixed with those of other processes' parts left out",
        "parallel",
        "images, labels = super()._batch(chosen, moves, mixing)",
        "images, labels = super()._batch(chosen, moves, None)",
        "tests/test_parallel.py::test_two_processes_train_as_one_does",
    ),
    Mutant(
        "images are mixed alike in every epoch",
        "data",
        'Stream(replicate, "mixup", epoch).bits(n)',
        'Stream(replicate, "mixup").bits(n)',
        "tests/test_data.py::test_mixing_goes_by_replicate_epoch_and_position",
    ),
    Mutant(
        "milestone one step late",
        "parts",
        "iterations(milestone, steps_per_epoch) <= iteration",
        "iterations(milestone, steps_per_epoch) < iteration",
        "tests/test_engine.py::test_schedules_are_those_of_torch",
    ),
    Mutant(
        "warmup one step late",
        "parts",
        "return self.lr * (iteration + 1) / warmup",
        "return self.lr * iteration / warmup",
        "tests/test_engine.py::test_schedules_are_those_of_torch",
    ),
    Mutant(
        "resumed training starts its schedule over",
        "engine",
        "self.iteration = first.start if start is None else start",
        "self.iteration = 0",
        "tests/test_engine.py::test_resume_meets_the_batches_and_rates_of_its_trunk",
    ),
    Mutant(
        "latest of equal epochs counts as best",
        "engine",
        'if row[f"{name}_accuracy"] > progress.best.get(name, -1.0):',
        'if row[f"{name}_accuracy"] >= progress.best.get(name, -1.0):',
        "tests/test_engine.py::test_best_is_the_earliest_of_ties",
    ),
    Mutant(
        "checkpoint loses the optimizer's buffers",
        "engine",
        "moment.copy_(carry[name])",
        "moment.clone().copy_(carry[name])",
        "tests/test_engine.py::test_a_restored_group_goes_on_as_if_nothing_had_happened",
    ),
    Mutant(
        "divergence not noticed",
        "engine",
        "if progress.diverged is None and not whole:",
        "if progress.diverged is None and whole is None:",
        "tests/test_engine.py::test_divergence_is_seen_at_a_stop_within_an_epoch",
    ),
    Mutant(
        "all epochs in the same order",
        "data",
        'Stream(replicate, "order", epoch)',
        'Stream(replicate, "order", 0)',
        "tests/test_data.py::test_order_depends_on_replicate_and_epoch",
    ),
    Mutant(
        "fingerprint without the labels",
        "catalog",
        '("digest", "u1"), ("y", "<i8")',
        '("digest", "u1")',
        "tests/test_catalog.py::test_the_fingerprint_hashes_shapes_pixels_and_labels_in_turn",
    ),
    Mutant(
        "classes of a known set numbered by sorted names",
        "readers",
        "if name in KNOWN and KNOWN[name].classes:",
        "if False:",
        "tests/test_readers.py::test_names_of_classes_may_have_other_punctuation",
    ),
    Mutant(
        "a download used without its checksum",
        "install",
        "if found != archive.md5:",
        "if not found:",
        "tests/test_install.py::test_another_checksum_is_refused",
    ),
    Mutant(
        "replicates share a seed",
        "nets",
        'Stream(replicate, "init", draw=draw)',
        'Stream(0, "init", draw=draw)',
        "tests/test_nets.py::test_initial_weights_depend_on_replicate_and_draw_alone",
    ),
    Mutant(
        "reinitialisation draws the same weights",
        "nets",
        'Stream(replicate, "init", draw=draw)',
        'Stream(replicate, "init")',
        "tests/test_nets.py::test_initial_weights_depend_on_replicate_and_draw_alone",
    ),
    Mutant(
        "shortcuts left out of ma_resnet20",
        "sizes",
        '"ma_resnet20": frozenset({"first", "head"}),',
        '"ma_resnet20": frozenset({"first", "head", "shortcut"}),',
        "tests/test_nets.py::test_prunable_weights",
    ),
    Mutant(
        "evaluation with batch statistics",
        "lanes",
        "self.network.eval()",
        "pass",
        "tests/test_replicas.py::test_evaluation_in_parts_is_that_of_the_whole",
    ),
    Mutant(
        "gradient of the replicas' mean loss",
        "lanes",
        "torch.autograd.grad(losses,",
        "torch.autograd.grad(losses / len(losses),",
        "tests/test_engine.py::test_training_is_that_of_plain_torch",
    ),
    Mutant(
        "a chain's negative outputs not cut off backwards",
        "chains",
        "            if relu:\n                _relu_backward",
        "            if False:\n                _relu_backward",
        "tests/test_chains.py::test_bits_are_those_of_autograd",
    ),
    Mutant(
        "padded layers in a chain",
        "chains",
        " and not any(layer.padded for layer in network.chain)",
        "",
        "tests/test_chains.py::test_a_chain_is_all_layers_and_none_is_padded",
    ),
    Mutant(
        "lanes end at different steps after a stop",
        "replicas",
        "self._end = self._begun",
        "self._end = number + 1",
        "tests/test_lanes.py::test_lanes_that_are_behind_catch_up_after_a_stop",
    ),
    Mutant(
        "pruned weights revived",
        "masks",
        "torch.gt(marked, gone, out=marked)",
        "pass",
        "tests/test_masks.py::test_what_was_pruned_stays_pruned_and_counts_first",
    ),
    Mutant(
        "ties all pruned",
        "masks",
        "if 0 < going < ties:",
        "if False:",
        "tests/test_masks.py::test_exactly_the_asked_number_goes_the_smallest_first",
    ),
    Mutant(
        "counts rounded down",
        "parts",
        "* total + Fraction(1, 2))",
        "* total)",
        "tests/test_parts.py::test_counts_are_rounded_half_up",
    ),
    Mutant(
        "correlation over pruned weights too",
        "weights",
        "theta, theta_prime = _left(theta, mask), _left(theta_prime, mask)",
        "pass",
        "tests/test_weights.py::test_only_remaining_weights_enter",
    ),
    Mutant(
        "a stop in the middle of an epoch loses its steps",
        "trainer",
        "if training.iteration > at_saved:\n                    self._checkpoint()\n                return False",
        "return False",
        "tests/test_lab.py::test_stopped_wherever_it_asks_it_goes_on_with_the_same_bits",
    ),
    Mutant(
        "an epoch that ended is not evaluated after a stop",
        "engine",
        "(begins or self.seen > 0)",
        "begins",
        "tests/test_engine.py::test_a_group_that_is_stopped_anywhere_goes_on_as_if_nothing_had_happened",
    ),
    Mutant(
        "BatchNorm not rewound",
        "derive",
        'if train.batchnorm == "reset" else found',
        'if train.batchnorm != "reset" else found',
        "tests/test_lab.py::test_tickets_begin_where_they_should",
    ),
    Mutant(
        "another training's bits let in",
        "runs",
        'known.get(row["epoch"], row) != row',
        'known.get(row["epoch"], row) is None',
        "tests/test_runs.py::test_a_run_that_comes_out_differently_is_stale_with_all_that_stands_on_it",
    ),
    Mutant(
        "checksum not compared",
        "store",
        'if digest(data) != entry["blake2b"]:',
        "if False:",
        "tests/test_store.py::test_every_damage_is_found_on_read",
    ),
    Mutant(
        "defaults in the key",
        "nodes",
        "if value is not default and value != default:",
        "if True:",
        "tests/test_values.py::test_pinned_key",
    ),
    Mutant(
        "stacked products begin off 16 bytes",
        "layers",
        "if spare := -inputs % 4:",
        "if spare := 0:",
        "tests/test_replicas.py::test_a_layer_gives_every_replica_the_bits_of_a_pair",
    ),
    Mutant(
        "stacked convolutions of few channels not padded",
        "layers",
        "self.shape[1] in few",
        "self.shape[1] in ()",
        "tests/test_replicas.py::test_a_layer_gives_every_replica_the_bits_of_a_pair",
    ),
    Mutant(
        "a small dense network of the size of what is prunable",
        "sizes",
        "return whole.parameters - pruned",
        "return whole.prunable - pruned",
        "tests/test_sizes.py::test_a_ticket_keeps_as_many_as_its_mask",
    ),
    Mutant(
        "settings of the command line below those of a panel",
        "spec",
        "branch = branch.merged(trees.nested(place, value))",
        "branch = trees.nested(place, value).merged(branch)",
        "tests/test_panels.py::test_settings_come_last_and_hold_for_all_panels",
    ),
    Mutant(
        "presets above the study",
        "spec",
        'found = below.merged(tree.named("net", "data"))',
        'found = tree.named("net", "data").merged(below)',
        "tests/test_panels.py::test_presets_lie_below_the_study",
    ),
    Mutant(
        "one permutation for all replicates",
        "tickets",
        "mask = Permuted(found.mask, scope, self.protocol.replicate)",
        "mask = Permuted(found.mask, scope, 0)",
        "tests/test_panels.py::test_random_tickets_permute_a_mask",
    ),
    Mutant(
        "dense networks of another recipe left to the first stage",
        "tickets",
        'yield from self._trained(site, dense(site.protocol, site.recipe), "dense", None)',
        'yield from self._trained(site, dense(site.protocol, site.recipe), "dense", None, stage=finding)',
        "tests/test_panels.py::test_dense_networks_of_another_recipe_are_evaluated",
    ),
    Mutant(
        "groups of maps with an odd number of places stacked",
        "sizes",
        "not any(places % 4 for places in maps)",
        "any(maps)",
        "tests/test_replicas.py::test_the_form_follows_from_network_and_images",
    ),
    Mutant(
        "fan in and fan out exchanged",
        "layers",
        '"he_fan_out": math.sqrt(2 / fan_out),',
        '"he_fan_out": math.sqrt(2 / fan_in),',
        "tests/test_nets.py::test_fans_are_counted_as_by_torch",
    ),
    Mutant(
        "the class's default left out of keys instead of the network's",
        "parts",
        "if value != own.get(name, value)}",
        "if value != type(self).model_fields[name].default}",
        "tests/test_parts.py::test_each_network_has_defaults_of_its_own",
    ),
    Mutant(
        "results of what ran last under a study's name",
        "results",
        "if isinstance(study, Config):",
        "if False:",
        "tests/test_results.py::test_a_study_as_it_is_whatever_ran_last_under_its_name",
    ),
    Mutant(
        "a square in place of the cube of the share that is left",
        "gradual",
        '{"cubic": 3, "linear": 1}',
        '{"cubic": 2, "linear": 1}',
        "tests/test_gradual.py::test_the_curve_is_eq_6_at_every_step",
    ),
    Mutant(
        "the last interval left out where it is shorter",
        "gradual",
        "iterations(pruning.every, train.steps_per_epoch)), end]",
        "iterations(pruning.every, train.steps_per_epoch))]",
        "tests/test_gradual.py::test_the_end_is_exact_where_the_interval_does_not_divide_the_window",
    ),
    Mutant(
        "ranked without the mask so far",
        "gradual",
        "masks.magnitude(current, goal[TOGETHER], self.mask, floor)",
        "masks.magnitude(current, goal[TOGETHER], None, floor)",
        "tests/test_gradual.py::test_a_mask_is_not_read_from_zeros",
    ),
    Mutant(
        "a mask that does not go on where an earlier part stopped",
        "engine",
        "mask if job.carry is None else _unpacked(job.carry)",
        "mask",
        "tests/test_gradual.py::test_a_run_that_stopped_goes_on_with_its_mask",
    ),
    Mutant(
        "checkpoints without the masks of states",
        "engine",
        'parts |= {f"mask:{step}": mask for step, mask in progress.masks.items()}',
        "pass",
        "tests/test_gradual.py::test_a_replica_does_not_depend_on_its_group_nor_on_what_is_kept_nor_on_interruptions",
    ),
    Mutant(
        "replicas stop only at steps that are kept, and prune there alone",
        "engine",
        "for at in pruner.steps if self.iteration < at < until",
        "for at in pruner.steps if at in kept and self.iteration < at < until",
        "tests/test_gradual.py::test_a_replica_does_not_depend_on_its_group_nor_on_what_is_kept_nor_on_interruptions",
    ),
    Mutant(
        "buffers of weights that are pruned on the way left as they are",
        "lanes",
        "for rows in (self.weights, *self.moments):",
        "for rows in (self.weights,):",
        "tests/test_gradual.py::test_the_optimizer_forgets_what_is_pruned_and_nothing_else",
    ),
    Mutant(
        "the mask that a training began with in place of the one it has",
        "measures",
        "_only(names, mask_at(at, store) or whole) for at",
        "_only(names, mask(at.run.mask, store) or whole) for at",
        "tests/test_gradual.py::test_what_is_made_from_a_training_that_prunes_goes_by_its_mask_there",
    ),
    Mutant(
        "pruning begins below what its mask has pruned",
        "feasible",
        "if count < already.get(name, 0):",
        "if count < 0:",
        "tests/test_gradual.py::test_pruning_to_less_than_its_mask_has_pruned_is_refused",
    ),
    Mutant(
        "the control of R_p under the mask itself",
        "probes",
        'under = Permuted(mask, "layer", trained.replicate)',
        "under = mask",
        "tests/test_probes.py::test_the_control_begins_with_weights_of_the_dense_training_that_no_mask_has_touched",
    ),
    Mutant(
        "one draw of random labels for all replicates",
        "probes",
        '"random_labels": seed',
        '"random_labels": 0',
        "tests/test_probes.py::test_random_labels_are_learnt_by_dense_one_shot_and_gradually_pruned_networks",
    ),
    Mutant(
        "two trainings with one order of the images",
        "probes",
        "(begun, replace(begun, order=other))",
        "(begun, begun)",
        "tests/test_probes.py::test_lines_are_between_the_ends_and_between_two_orders_from_one_state",
    ),
    Mutant(
        "eq. 5 from the beginning of the training",
        "measures",
        "shrinkage(run.recipe, run.iteration(before.step), reached",
        "shrinkage(run.recipe, 0, reached",
        "tests/test_measures.py::test_spread_is_that_of_numpy_with_the_slope_of_eq_5",
    ),
    Mutant(
        "a part of a measure taken for the whole",
        "runs",
        'bool(records) and not records[-1].get("left")',
        "bool(records)",
        "tests/test_measures.py::test_a_measure_that_was_stopped_goes_on_from_its_last_part",
    ),
    Mutant(
        "directions into pruned weights",
        "landscape",
        "    return normalised(_masked(drawn, mask), weights)",
        "    return normalised(drawn, weights)",
        "tests/test_landscape.py::test_filters_of_a_random_plane_are_as_long_as_what_remains_of_them_and_orthogonal",
    ),
    Mutant(
        "directions normalised by layer, not by filter",
        "landscape",
        "(t.flatten(1) if t.dim() > 1 else t[None] for t in (tensor, weights[name]))",
        "(t.flatten()[None] for t in (tensor, weights[name]))",
        "tests/test_landscape.py::test_filters_of_a_random_plane_are_as_long_as_what_remains_of_them_and_orthogonal",
    ),
    Mutant(
        "random directions that are not made orthogonal",
        "landscape",
        "        if abs(cosine) <= _COSINE:",
        "        if abs(cosine) <= 1:",
        "tests/test_landscape.py::test_filters_of_a_random_plane_are_as_long_as_what_remains_of_them_and_orthogonal",
    ),
    Mutant(
        "a pruned filter divided by its norm of zero",
        "landscape",
        "torch.where(norms > 0, own.norm(dim=1) / norms, 0)",
        "own.norm(dim=1) / norms",
        "tests/test_landscape.py::test_a_filter_that_is_pruned_whole_has_no_direction",
    ),
    Mutant(
        "directions change biases and BatchNorm",
        "landscape",
        "[name for name in own if state[name].dim() > 1]",
        "own",
        "tests/test_landscape.py::test_a_direction_leaves_biases_and_batchnorm_alone_unless_asked",
    ),
    Mutant(
        "components about the first state",
        "landscape",
        "*others, centre = snapshots\n",
        "centre, *others = snapshots\n",
        "tests/test_landscape.py::test_the_path_of_a_training_ends_at_the_origin_and_has_its_loss",
    ),
    Mutant(
        "states projected as if directions had length 1",
        "landscape",
        "np.linalg.lstsq(products, ",
        "np.linalg.lstsq(np.eye(2), ",
        "tests/test_landscape.py::test_least_squares_where_directions_are_not_orthonormal",
    ),
    Mutant(
        "statistics of the point before left in place",
        "scores",
        "            network.normalise_by(_averaging(len(images) / seen))\n",
        "            network.normalise_by(_averaging(0.1))\n",
        "tests/test_landscape.py::test_surfaces_are_those_of_a_plain_loop",
    ),
    Mutant(
        "a point evaluated in training mode",
        "scores",
        "            network(images)\n        network.eval()",
        "            network(images)\n        network.train()",
        "tests/test_landscape.py::test_surfaces_are_those_of_a_plain_loop",
    ),
    Mutant(
        "images of a landscape in the order of the set",
        "scores",
        'Stream(0, "landscape").permutation(len(labels))[:count]',
        "torch.arange(count).numpy()",
        "tests/test_landscape.py::test_images_are_the_same_ones_and_not_in_the_order_of_classes",
    ),
    Mutant(
        "sharpness in one direction only",
        "curvature",
        "[(along, sign * radius) for sign in (1, -1)]",
        "[(along, radius) for sign in (1, -1)]",
        "tests/test_curvature.py::test_sharpness_of_a_slope_is_0_since_both_ways_are_gone",
    ),
    Mutant(
        "the eigenvalue of largest magnitude",
        "curvature",
        ".eigenvectors[:, -1]",
        ".eigenvectors[:, 0]",
        "tests/test_curvature.py::test_the_largest_eigenvalue_of_a_matrix",
    ),
    Mutant(
        "the Hessian over pruned weights too",
        "curvature",
        "kept |= {name: layer",
        "kept | {name: layer",
        "tests/test_curvature.py::test_the_eigenvalue_of_a_network_is_that_of_its_whole_hessian",
    ),
    Mutant(
        "a barrier above the higher end in place of the line",
        "curvature",
        'row[name] - (1 - row["fraction"]) * start[name] - row["fraction"] * end[name]',
        "row[name] - max(start[name], end[name])",
        "tests/test_curvature.py::test_barriers_are_measured_from_the_line_between_the_ends",
    ),
    Mutant(
        "a surface begun anew where it was stopped",
        "measures",
        "if cell not in done]",
        "]",
        "tests/test_measures.py::test_a_surface_goes_on_where_it_was_stopped_and_fills_what_is_missing",
    ),
    Mutant(
        "sharpness without the mask of the training",
        "measures",
        "        mask_at(at, store),\n        _scorer",
        "        None,\n        _scorer",
        "tests/test_measures.py::test_curvature_and_barriers_are_those_of_the_stored_states",
    ),
    Mutant(
        "colours by the losses of one surface",
        "losses",
        "replace(contours.scale(part, there), levels=colours.levels)",
        "contours.scale(part, there)",
        "tests/test_losses.py::test_small_surfaces_are_drawn_closer_in_the_same_colours",
    ),
    Mutant(
        "losses that are not finite drawn as low ones",
        "contours",
        "np.where(np.isfinite(grid), grid, 2 * common.levels[-1] + 1)",
        "np.where(np.isfinite(grid), grid, 0)",
        "tests/test_contours.py::test_losses_that_are_not_finite_are_above_the_last_level",
    ),
    Mutant(
        "losses of the plane drawn as those of the training",
        "contours",
        '(("loss", OWN, "-"), ("plane_loss"',
        '(("plane_loss", OWN, "-"), ("plane_loss"',
        "tests/test_contours.py::test_own_losses_are_told_from_those_of_the_plane",
    ),
    Mutant(
        "advice by the first signal that saturates",
        "saturation",
        "ordered[len(ordered) // 2] if ordered",
        "ordered[0] if ordered",
        "tests/test_saturation.py::test_most_signals_decide",
    ),
    Mutant(
        "advice judged by the replicate that gave it",
        "saturation",
        '("others", own[~is_own])',
        '("others", own)',
        "tests/test_saturation.py::test_advice_is_judged_by_tickets_that_took_no_part_in_it",
    ),
    Mutant(
        "eq. 5 without momentum",
        "weights",
        "rates * recipe.weight_decay / (1 - recipe.momentum)",
        "rates * recipe.weight_decay",
        "tests/test_weights.py::test_weights_without_gradient_spread_as_equation_5_says",
    ),
    Mutant(
        "the distance of random masks as the share that both keep",
        "masks",
        "a * (1 - b) + b * (1 - a)",
        "a * b",
        "tests/test_masks.py::test_distances_by_hand",
    ),
    Mutant(
        "the control of R_p on weights that the mask has pruned already",
        "probes",
        'begun = trained.whole if reading == "permuted" else first',
        "begun = first",
        "tests/test_probes.py::test_the_control_begins_with_weights_of_the_dense_training_that_no_mask_has_touched",
    ),
]


def run(package_parent: Path, tests: list[str], report: Path, *options: str) -> dict[str, tuple[str, str]]:
    """Run tests on the package in a folder; outcome and text of the failure by test."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    command += ["-c", str(ROOT / "pyproject.toml"), f"--junitxml={report}", "-o", "junit_family=xunit1"]
    command += [*options, *(str(ROOT / test) for test in tests)]
    done = subprocess.run(command, cwd=package_parent, capture_output=True, text=True, timeout=400)
    if not report.exists():
        return {test: ("error", done.stdout + done.stderr) for test in tests}
    outcomes: dict[str, tuple[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        name = f"{case.get('file', '')}::{case.get('name')}"
        outcomes[name] = ("passed", "") if bad is None else (bad.tag, bad.text or "")
    return outcomes


def judge(mutant: Mutant, folder: Path) -> str | None:
    """Say what is wrong with a mutant; None if its test notices it by an assertion of its own."""
    shutil.copytree(ROOT / "lthlab", folder / "lthlab", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "params" / "presets", folder / "params" / "presets")
    path = folder / "lthlab" / f"{mutant.module}.py"
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return f"the text to change stands {text.count(mutant.old)} times in {mutant.module}.py"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    outcomes = run(folder, [mutant.test], folder / "report.xml", "-x")
    if not outcomes or all(kind == "passed" for kind, _ in outcomes.values()):
        return "no test noticed"
    failed = [text for kind, text in outcomes.values() if kind == "failure"]
    own = re.compile(r"^(?:.*/)?tests/\w+\.py:\d+: (?:AssertionError|Failed)", re.MULTILINE)
    if not any(own.search(text) for text in failed):
        last = "\n".join(text for _, text in outcomes.values())[-1500:]
        return f"failed, but not by an assertion of the test:\n{last}"
    return None


def main() -> int:
    """Judge all mutants, two at a time."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as aside:
        tests = sorted({mutant.test for mutant in MUTANTS})
        sound = run(ROOT, tests, Path(aside) / "sound.xml")
        red = [f"{name}: {text}" for name, (kind, text) in sound.items() if kind != "passed"]
        if red or len(sound) < len(tests):
            print("without any fault these are not green:", *red, sep="\n")
            return 1
        with ThreadPoolExecutor(2) as pool:
            folders = [Path(aside) / str(number) for number in range(len(MUTANTS))]
            verdicts = list(pool.map(judge, MUTANTS, folders))
    for mutant, verdict in zip(MUTANTS, verdicts, strict=True):
        print(f"{'noticed' if verdict is None else 'NOT NOTICED'}: {mutant.fault} ({mutant.test})")
        if verdict is not None:
            print(f"    {verdict}")
    passed = verdicts.count(None)
    print(f"mutants, {time.monotonic() - began:.0f} s")
    print(f"{passed} passed, {len(MUTANTS) - passed} failed")
    return 0 if passed == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
