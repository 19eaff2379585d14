"""Tables of the encoder and of calibration."""

from __future__ import annotations

from .layout import Column, Results, fixed, lay_out, percent, table, times
from .tuning import above

# Names of the ablation's layers that fit a column.
ABLATION_LAYERS = {
    "fixed 384×384": "fixed 384²",
    "mnist-dit transformer_blocks.1.attn1.to_q": "to_q",
    "mnist-dit transformer_blocks.2.ff.net.0.proj": "ff in",
    "mnist-unet down_blocks.2.resnets.0.conv2": "conv2",
    "mnist-unet up_blocks.0.resnets.0.conv1": "conv1",
}


def encoder_speed(results: Results) -> str:
    return table(
        results.rows("encoder_speed"),
        {
            "layer": lambda row: times(row["shape"]),
            "format": lambda row: row["format"],
            "C++, s a million weights": lambda row: fixed(row["seconds_a_million"]["compiled"], 2),
            "torch, one thread": lambda row: fixed(row["seconds_a_million"]["torch"], 2),
            "error, C++": lambda row: fixed(row["error"]["compiled"], 5),
            "error, torch": lambda row: fixed(row["error"]["torch"], 5),
        },
    )


def fixed_layers(results: Results) -> str:
    """Relative output error and seconds at both efforts, beside AQLM where it was measured."""

    def line(fast) -> list[str]:
        full = results.row("encode", shape=fast["shape"], format=fast["format"], effort="full")
        errors = [f"{fixed(row['rel_err_out'], 4)} / {fixed(row['seconds'], 1)}" for row in (fast, full)]
        ratio = f"{fixed(fast['rel_err_out'] / full['rel_err_out'], 2)} / {fixed(fast['seconds'] / full['seconds'], 2)}"
        aqlm = f"{fixed(fast['aqlm_error'], 4)} / {fixed(fast['aqlm_seconds'], 0)}" if "aqlm_error" in fast else "–"
        return [times(fast["shape"]), fast["format"], fixed(fast["bits_per_weight"], 2), *errors, ratio, aqlm]

    heads = ["layer", "format", "total bits", "fast, error / s", "full, error / s", "fast over full", "AQLM, beam 8, error / s"]
    return lay_out(heads, [line(row) for row in results.rows("encode", effort="fast")])


def encoder_parts(results: Results, format: str) -> str:
    """Relative output error of five layers with one part of fast effort changed."""
    rows = results.rows("encoder_ablation.parts", format=format)
    found = {(row["variant"], row["layer"]): row for row in rows}

    def line(variant: str) -> list[str]:
        mine = [found[variant, layer] for layer in ABLATION_LAYERS]
        return [variant, *(fixed(row["error"], 5) for row in mine), fixed(sum(row["seconds"] for row in mine), 1)]

    return lay_out(["", *ABLATION_LAYERS.values(), "seconds"], [line(variant) for variant in dict.fromkeys(row["variant"] for row in rows)])


def part_worth(results: Results, variant: str, formats: list[str]) -> str:
    """The share of the error that a part saves on real layers, from the smallest to the largest."""
    shares = []
    for format in formats:
        for layer in list(ABLATION_LAYERS)[1:]:
            fast, changed = (
                results.row("encoder_ablation.parts", format=format, layer=layer, variant=name)["error"] for name in ("fast", variant)
            )
            shares.append(1 - fast / changed)
    return f"{fixed(100 * min(shares), 0)} to {percent(max(shares))}"


def gaussian_source(results: Results) -> str:
    """Mean squared error per unit variance at both efforts."""

    def cell(text: str, effort: str) -> str:
        found = results.rows("distortion", format=text, effort=effort)
        return f"{fixed(found[0]['mse'], 4)} / {fixed(found[0]['seconds'], 0)}" if found else "–"

    firsts = {row["format"]: row for row in reversed(results.rows("distortion"))}
    rows = sorted(firsts.values(), key=lambda row: row["bits_per_weight"])
    return table(
        rows,
        {
            "format": lambda row: row["format"],
            "total bits": lambda row: fixed(row["bits_per_weight"], 3),
            "limit of the code bits": lambda row: fixed(row["limit"], 4),
            "fast, error / s": lambda row: cell(row["format"], "fast"),
            "full, error / s": lambda row: cell(row["format"], "full"),
        },
    )


def shared_gaussian_source(results: Results) -> str:
    """Mean squared error of many matrices that share codebooks."""
    return table(
        results.rows("gaussian_source"),
        {
            "format": lambda row: row["format"],
            "hypotheses, codebooks fitted / codes chosen": lambda row: f"{row['beam_fitted']} / {row['beam']}",
            "total bits": lambda row: fixed(row["bits_per_weight"], 3),
            "error": lambda row: fixed(row["mse"], 4),
            "of those not fitted on": lambda row: fixed(row["mse_not_fitted_on"], 4),
            "minutes, fitting / codes": lambda row: " / ".join(fixed(row["seconds"][part] / 60, 0) for part in ("fitting", "codes")),
        },
    )


def damping(results: Results) -> str:
    """Geometric mean of the relative error at 2 bits, under the calibration that was used and another one."""
    heads = ["damping", *(f"{model}, {which}" for model in ("mnist-dit", "mnist-unet") for which in ("same calibration", "another"))]

    def line(value: float) -> list[str]:
        rows = [results.row("damping", subject=model, damping=value) for model in ("mnist-dit", "mnist-unet")]
        return [f"{value:g}", *(fixed(row[key], 5) for row in rows for key in ("seen", "other"))]

    return lay_out(heads, [line(value) for value in dict.fromkeys(row["damping"] for row in results.rows("damping"))])


def calibration_images(results: Results) -> str:
    """How many images: the error on fresh inputs beside that of the most images, and the input vectors that the median layer saw for each of its inputs."""
    models = ("mnist-dit", "mnist-unet", "digits-sd")
    heads = ["images", *(f"{model}{what}" for model in models for what in (", tokens an input", ", error"))]
    numbers = list(dict.fromkeys(row["n_images"] for row in results.rows("calibration_images")))

    def line(n: int) -> list[str]:
        cells = [str(n)]
        for model in models:
            row = results.row("calibration_images", subject=model, n_images=n)
            most = results.row("calibration_images", subject=model, n_images=max(numbers))
            cells += [fixed(row["tokens_per_input"]["median"], 0), f"+{fixed(100 * (row['error'] / most['error'] - 1), 0)} %"]
        return cells

    return lay_out(heads, [line(n) for n in numbers])


def calibration_spread(results: Results) -> str:
    """Errors in timesteps that calibration did not see, by how it was sampled."""
    models = list(dict.fromkeys(row["subject"] for row in results.rows("calibration_spread")))
    parts = {"told": "one vector an image", "others": "other layers"}
    cases = list(dict.fromkeys((row["steps"], row["spread"]) for row in results.rows("calibration_spread")))

    def line(steps: int, spread: float) -> list[str]:
        rows = [results.row("calibration_spread", subject=model, steps=steps, spread=spread) for model in models]
        return [_steps_of(steps, spread), *(fixed(row[part], 5) for row in rows for part in parts)]

    return lay_out(["steps", *(f"{model}, {part}" for model in models for part in parts.values())], [line(*case) for case in cases])


def calibration_steps(results: Results, *models: str) -> str:
    """Plans found by probes of few steps, by their calibration, sampled in 20 and in 50 steps."""
    rows = [
        {"model": model, **row}
        for model in models
        for row in results.rows(f"calibration_steps_{model}_20")
        if row["name"] != "full precision"
    ]

    def sampled_in(steps: int) -> Column:
        return lambda row: above(results.row(f"calibration_steps_{row['model']}_{steps}", name=row["name"]))

    return table(
        sorted(rows, key=lambda row: (models.index(row["model"]), row["bits"])),
        {
            "": lambda row: row["model"],
            "bits": lambda row: fixed(row["bits"], 1),
            "probes in": lambda row: f"{row['probes_in']} steps",
            "calibrated in": lambda row: _steps_of(row["calibration"]["steps"], row["calibration"].get("spread", 0.0)),
            "above full precision in 20 steps, 95 %": sampled_in(20),
            "in 50 steps": sampled_in(50),
        },
    )


def _steps_of(steps: int, spread: float) -> str:
    return f"{round(steps * (1 - spread))} to {round(steps * (1 + spread))}" if spread else f"{steps}"


def block_hessian(results: Results) -> str:
    layers = {row["layer"]: row["inputs"] for row in results.rows("block_hessian")}
    blocks = list(dict.fromkeys(row["blocks"] for row in results.rows("block_hessian")))
    lines = [
        [layer, f"{inputs:,}", *(fixed(results.row("block_hessian", layer=layer, blocks=n)["error"], 5) for n in blocks)]
        for layer, inputs in layers.items()
    ]
    return lay_out(["layer", "inputs", *(f"{n} block{'s' if n > 1 else ''}" for n in blocks)], lines)


def two_blocks_cost(results: Results) -> str:
    """How much error it adds to keep H in two blocks, from the smallest to the largest."""
    halves = {row["layer"]: row["error"] for row in results.rows("block_hessian", blocks=2)}
    added = [halves[row["layer"]] / row["error"] - 1 for row in results.rows("block_hessian", blocks=1)]
    return f"{fixed(100 * min(added), 0)} to {percent(max(added))}"


def timestep_weightings(results: Results) -> str:
    """Fréchet distance (mean ± standard deviation over noise seeds), and the geometric mean of the ratios to uniform."""
    cases = [(model, rate) for model in ("mnist-dit", "mnist-unet") for rate in (2, 3)]
    found = {
        (row["weighting"], row["subject"], row["rate"]): row["fid"]
        for rate in (2, 3)
        for row in results.rows(f"calibration_weighting_{rate}")
    }

    def line(name: str) -> list[str]:
        product = 1.0
        for case in cases:
            product *= found[name, *case]["mean"] / found["uniform", *case]["mean"]
        return [
            name,
            *(f"{fixed(found[name, *case]['mean'], 1)} ± {fixed(found[name, *case]['sd'], 1)}" for case in cases),
            fixed(product**0.25, 2),
        ]

    return lay_out(
        ["weighting", *(f"{model}, {rate} bits" for model, rate in cases), "ratio"],
        [line(name) for name in dict.fromkeys(key[0] for key in found)],
    )


def large_models(results: Results) -> str:
    return table(
        [row for row in results.rows("encode_models") if "model" in row],
        {
            "": lambda row: row["model"],
            "weights": lambda row: f"{row['n_weights'] / 1e6:,.0f} M",
            "all layers in one format": lambda row: f"{fixed(row['seconds'] / 60, 0)} min",
            "a million weights": lambda row: f"{fixed(row['seconds'] / row['n_weights'] * 1e6, 1)} s",
        },
    )


def large_layers(results: Results) -> str:
    """The layers of each shape that takes longest, by number of inputs."""
    rows = [row for row in results.rows("encode_models") if "shape" in row and row["n_weights"] > 5e6]
    return table(
        rows,
        {
            "layer": lambda row: times(row["shape"]),
            "seconds": lambda row: fixed(row["seconds"], 0),
            "s a million weights": lambda row: fixed(row["seconds"] / row["n_weights"] * 1e6, 1),
            "peak memory, GB": lambda row: fixed(row["peak_mb"] / 1e3, 2),
            "before encoding, GB": lambda row: fixed(row["before_mb"] / 1e3, 2),
        },
    )


TABLES = (
    encoder_speed,
    fixed_layers,
    encoder_parts,
    part_worth,
    gaussian_source,
    shared_gaussian_source,
    damping,
    block_hessian,
    calibration_images,
    calibration_spread,
    calibration_steps,
    two_blocks_cost,
    timestep_weightings,
    large_models,
    large_layers,
)
