# %% [markdown]
# # Batch size and noise scale
#
# A larger microbatch averages more noise away, so two large ones agree more than two small ones.
# How much more? We measure it at several sizes, and predict all of them from one. On the way comes
# the noise scale: the batch size from which on a larger batch hardly pays.
#
# It takes less than two minutes on two cores and needs no network: the images are scikit-learn's
# handwritten digits, four in ten with a wrong label.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from torch.nn.functional import cross_entropy

import gafscope as gs

sns.set_theme(style="whitegrid", palette="colorblind", font_scale=0.85)
torch.set_num_threads(1)  # the network is so small that a second thread would only wait

loss = gs.supervised(cross_entropy)
noisy = gs.data.load_data("digits", label_noise=0.4).train
clean = gs.data.load_data("digits").train
print(f"{len(noisy):,} images")

# %% [markdown]
# ## Measured and predicted
#
# The micro-gradient of u samples is the mean gradient mu and noise of variance tr(Sigma) / u. So
# the expected cosine of two of them is about
#
# 1 / (1 + B / u), with B = tr(Sigma) / |mu|^2,
#
# and B, the noise scale, is all that one needs to know. `gs.predict_curve` estimates it from one
# Gramian, here of 64 microbatches of 20. To measure, we draw disjoint microbatches of each size
# many times and average their distances. (Only three of the largest size fit into the data at a
# time.)

# %%
SIZES = (5, 10, 20, 50, 100, 200, 400)


def begin(split):
    torch.manual_seed(0)
    model = gs.models.mlp(64, 128)
    trainer = gs.Trainer(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
        aggregator=gs.Mean(),
        microbatches=2,
        record_layers_every=0,
        progress=False,
    )
    return trainer, gs.data.MicrobatchSampler(split, microbatches=2, microbatch_size=20)


def draw(model, split, size, most, generator):
    """Give the Gramian of random disjoint microbatches of a size, as many as there are."""
    k = min(len(split) // size, most)
    chosen = torch.randperm(len(split), generator=generator)[: k * size]
    return gs.gramian(model, loss, split.batch(chosen), microbatches=k, layers=False)


def measure(model, split):
    generator = torch.Generator().manual_seed(1)
    return [
        sum(
            gs.metrics.mean_distance(draw(model, split, size, 64, generator)).value
            for _ in range(30)
        )
        / 30
        for size in SIZES
    ]


def predict(model, split, rows=64):
    gram = draw(model, split, 20, rows, torch.Generator().manual_seed(2))
    return gs.predict_curve(gram, 20, sizes=SIZES, population=len(split))


trainer, sampler = begin(noisy)
measured, predicted = {}, {}
for steps in (0, 100, 1500):
    if steps:
        trainer.fit(sampler, steps)
    measured[steps] = measure(trainer.model, noisy)
    predicted[steps] = predict(trainer.model, noisy)

figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
for axes, steps in zip(panels, measured, strict=True):
    table = predicted[steps].table
    axes.plot(table["u"], 1 - table["cosine"], "C1", label="predicted from u = 20")
    axes.fill_between(table["u"], 1 - table["high"], 1 - table["low"], color="C1", alpha=0.2)
    axes.plot(SIZES, measured[steps], "oC0", label="measured")
    axes.set(xscale="log", xlabel="samples in a microbatch", title=f"after {steps:,} steps")
    axes.set_xticks(SIZES, SIZES)
    axes.minorticks_off()
panels[0].set(ylabel="mean cosine distance", ylim=(0, 1.05))
_ = panels[1].legend(loc="lower left")

# %% [markdown]
# The untrained network's gradients agree even in small microbatches. Once the digits are learned it
# takes hundreds of samples for two micro-gradients to agree by half. The prediction from one size
# goes through the points measured at all the others; the band is its 95% interval.

# %%
errors = {
    f"after {steps:,} steps": 1 - predicted[steps].table["cosine"] - measured[steps]
    for steps in measured
}
pd.DataFrame(errors).set_axis(pd.Index(SIZES, name="u")).round(3)

# %% [markdown]
# A size for a wanted agreement can be read off too, within the data there are: `inf` says that two
# such microbatches do not fit into them.

# %%
pd.DataFrame(
    {
        f"after {steps:,} steps": {
            f"cosine {wanted}": str(curve.size_for(wanted)) for wanted in (0.1, 0.25, 0.5, 0.75)
        }
        for steps, curve in predicted.items()
    }
)

# %% [markdown]
# ## The noise scale over the training
#
# `noise_scale` of the prediction is B for the mean over these images. Below it, twice the batch is
# worth nearly twice the steps; far above it, a larger batch buys little. We follow it from the
# first step on, on wrong and on right labels.

# %%
STEPS = (0, 10, 20, 50, 100, 200, 400, 800, 2000)
rows = []
for name, split in (("40% wrong labels", noisy), ("right labels", clean)):
    trainer, sampler = begin(split)
    for steps in STEPS:
        if steps:
            trainer.fit(sampler, steps)
        curve = predict(trainer.model, split)
        scale = curve.noise_scale
        rows.append((name, steps, scale.value, scale.low, scale.high, bool(curve.refused)))
scales = pd.DataFrame(rows, columns=["data", "step", "B", "low", "high", "refused"])

figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
for number, (name, part) in enumerate(scales.groupby("data", sort=False)):
    places = [STEPS.index(step) + 0.15 * number for step in part["step"]]
    known = part.dropna()
    errors = [known["B"] - known["low"], known["high"] - known["B"]]
    at = [place for place, refused in zip(places, part["refused"], strict=True) if not refused]
    axes.errorbar(at, known["B"], errors, fmt="os"[number], color=f"C{number}", label=name)
    gone = [place for place, refused in zip(places, part["refused"], strict=True) if refused]
    axes.plot(gone, [1500] * len(gone), "x", color=f"C{number}", label=f"{name}: refused")
axes.set_xticks(range(len(STEPS)), STEPS)
axes.set(yscale="log", xlabel="step (not to scale)", ylabel="noise scale in samples")
axes.set_ylim(5, 2500)
axes.legend(loc="lower right")
scales.pivot(index="step", columns="data", values="B").round()

# %% [markdown]
# It begins at a few samples and grows by more than ten times while the network learns: the usual
# picture. A batch that is right later on is far too large at the beginning. The crosses along the
# top are steps at which it cannot be known. With right labels that is so from some point on. With
# wrong ones it happens once: there is nearly always something left to learn, if only by heart.
#
# ## When it refuses
#
# Where no mean gradient can be told from none, B could be anything up to infinity. Then there is no
# number, but a reason. Three cases. First, the digits with right labels, learned to the end:
# nothing is left to agree on.

# %%
print(predict(trainer.model, clean))

# %% [markdown]
# Second, the noisy digits after 100 steps, from eight microbatches only: too little is measured.
# The remedy is in the message, and with 64 it works.

# %%
trainer, sampler = begin(noisy)
trainer.fit(sampler, steps=100)
print("8 microbatches: ", predict(trainer.model, noisy, rows=8))
print("64 microbatches:", predict(trainer.model, noisy).noise_scale)

# %% [markdown]
# Third, fewer than eight, which are not taken at all.

# %%
try:
    predict(trainer.model, noisy, rows=4)
except gs.UserError as error:
    print(error)

# %% [markdown]
# ## Where to go from here
#
# - `gs.metrics.noise_scale(gram, microbatch_size=20)` is the same number for fresh samples, of any
#   Gramian or of one layer.
# - `gs.watch` writes it for every recorded step of a loop of yours: the last notebook.
# - `python -m gafscope batch-size-curve` does all this with several seeds.
