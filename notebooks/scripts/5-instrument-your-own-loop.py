# %% [markdown]
# # Instrument your own loop
#
# A language model is trained by a plain PyTorch loop that accumulates the gradients of four
# microbatches and then steps. We leave the loop as it is, put `gs.watch` around it, and look at
# whether the four gradients agree.
#
# It takes less than two minutes on two cores and needs no network. The text ships with Python.

# %% [markdown]
# ## The text
#
# `pydoc_data.topics` holds what Python's `help()` prints about the language: some 450 KB of the
# Python Language Reference. Copyright Python Software Foundation, licensed under the PSF License
# Version 2 (`license()` prints it). The model reads it byte by byte.

# %%
import pydoc_data.topics

import pandas as pd
import torch
from torch.nn.functional import cross_entropy

import gafscope as gs

torch.set_num_threads(1)  # the model is so small that a second thread would only wait

text = "\n".join(pydoc_data.topics.topics.values())
data = torch.tensor(list(text.encode()))
print(f"{len(data):,} bytes, beginning with:\n\n{text[:210]}")

# %% [markdown]
# ## The loop
#
# Four microbatches (k = 4) of eight sequences of 64 bytes, then a step of AdamW: nothing here knows
# of gafscope but the `with` and `scope.loss`, which notes the loss.

# %%
CONTEXT, SEQUENCES, K = 64, 8, 4


def microbatch(generator, shuffled=False):
    starts = torch.randint(len(data) - CONTEXT - 1, (SEQUENCES, 1), generator=generator)
    window = data[starts + torch.arange(CONTEXT + 1)]
    inputs, targets = window[:, :-1], window[:, 1:]
    if shuffled:
        order = torch.randperm(targets.numel(), generator=generator)
        targets = targets.flatten()[order].view_as(targets)
    return inputs, targets


def train(steps, broken=False, live=False):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = gs.models.gpt(256, context=CONTEXT, dim=96, depth=3, heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    with gs.watch(model, optimizer, every=2, live=live) as scope:
        for _ in range(steps):
            for i in range(K):
                inputs, targets = microbatch(generator, shuffled=broken and i == K - 1)
                loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
                scope.loss(loss)
                (loss / K).backward()
            optimizer.step()
            optimizer.zero_grad()
    return scope.run


# %% [markdown]
# `live=True` draws the panel below while the loop runs. It is redrawn as often as 2% of the loop's
# time allow, in a loop as short as this one hardly more than once (the line of text above it is
# renewed twice a second), and stays as a picture when the loop is over.

# %%
run = train(steps=150, live=True)

# %% [markdown]
# **What the panel shows.** Above: the loss, the mean cosine distance over the pairs of
# micro-gradients (0: they point the same way, 1: they have nothing to do with each other), and the
# share of the microbatches that `GAF(tau=0.97)` would have accepted. It only looks on here:
# `filter=gs.GAF(tau=0.97)` would make it act. Below: the distances at the last recorded step, pair
# by pair, and the mean distance of every parameter over time.
#
# - In the first steps the distance is small. Every microbatch asks for the same thing: learn how
#   often each byte occurs.
# - Once that is learned, what is left differs from text to text, and the distance rises towards 1:
#   a step is then mostly noise.
# - The heat map tells where. The position embeddings (the second row, lighter than its neighbours)
#   agree least: each of their numbers hears of one position only. The normalisation and the biases
#   agree strongly early on: few numbers, which all bytes push in the same direction.
#
# The same panel comes back from the record at any later time: `gs.load_run(folder).panel()` for a
# watch that was given a `run_dir`, or `run.panel()` here. The numbers are in a data frame.

# %%
scalars = run.scalars
stage = scalars["step"] // 30 * 30
scalars.groupby(stage.rename("steps from"))[["loss", "distance_mean"]].mean().round(3)

# %% [markdown]
# ## Is the batch too small?
#
# The noise scale `tr(Sigma) / |mu|^2` is the batch size at which noise and signal of a step are
# equally large. `gs.watch` estimates it in microbatches; times eight it is in sequences. One step's
# estimate from four gradients is rough, so we take medians.

# %%
in_sequences = (SEQUENCES * scalars["noise_scale"]).groupby(stage.rename("steps from")).median()
in_sequences.round(1).rename("noise scale in sequences").to_frame()

# %% [markdown]
# A step uses 32 sequences. Where the noise scale is far below that, half the batch would have done
# as well; where it is above, a larger batch would still pay. It grows as training goes on, which is
# the usual picture.
#
# ## Which microbatch does not belong?
#
# Now the fourth microbatch of every step comes from a broken source: its targets are shuffled. The
# loss hardly tells, since it is a mean over all four. We average the distances over the last twenty
# recorded steps.

# %%
broken = train(steps=100, broken=True)
healthy, last = run.recorded_steps[30:50], broken.recorded_steps[-20:]


def mean_distance(which, steps):
    return sum(which.cosine_distance(step) for step in steps) / len(steps)


print("healthy:")
print(mean_distance(run, healthy).round(2))
print("the fourth is broken:")
print(mean_distance(broken, last).round(2))

# %% [markdown]
# In the healthy run all pairs are alike. In the broken one the fourth row stands out: the shuffled
# microbatch has nothing in common with the other three, or pulls against them, and they agree with
# each other more than it agrees with any.
#
# That is what a filter can use. It needs a threshold, and no threshold suits every model:
# `gs.calibrate` finds one. What another rule would have accepted of the same gradients can be asked
# afterwards, without training again:

# %%
shares = {}
for tau in (0.8, 0.9, 0.97):
    accepted = gs.replay(broken, gs.GAF(tau=tau))["accepted"]
    shares[f"tau = {tau}"] = accepted[-20:].mean() / K
pd.Series(shares, name="share accepted").round(2).to_frame()

# %% [markdown]
# With three of four microbatches healthy, a share near 0.75 is what it should be: all three
# thresholds lie between the pairs that agree (0.45) and those that do not (1.0).
#
# ## Where to go from here
#
# - In a loop of yours: `with gs.watch(model, optimizer, every=10, run_dir="runs/mine") as scope:`
#   around it, and `split="samples"` if it makes one backward a step.
# - `python -m gafscope report runs/mine` writes the record as one page.
