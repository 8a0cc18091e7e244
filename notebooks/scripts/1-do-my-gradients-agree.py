# %% [markdown]
# # Do my gradients agree?
#
# Each microbatch, even each single image, says in which direction it would move the weights. Do
# they all say the same? We look at that on real images, some of them with a wrong label, in a
# network before training, after a little, and after too much of it.
#
# It takes well under two minutes on two cores and needs no network: the images are scikit-learn's
# handwritten digits.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch.nn.functional import cross_entropy

import gafscope as gs

sns.set_theme(style="white", palette="colorblind", font_scale=0.85)
torch.set_num_threads(1)  # the network is so small that a second thread would only wait

digits = gs.data.load_data("digits", label_noise=0.3)
print(f"{len(digits.train):,} images to train on, {int(digits.train.flipped.sum())} mislabelled")

# %% [markdown]
# `label_noise=0.3` moves three in ten of the training labels to another digit. The data set
# remembers which, so that we can check afterwards; the network never learns of it.

# %%
figure, axes = plt.subplots(2, 8, figsize=(9, 2.9), layout="constrained")
right, wrong = (~digits.train.flipped).nonzero(), digits.train.flipped.nonzero()
for row, members, word in zip(axes, (right, wrong), ("right", "wrong"), strict=True):
    for axis, i in zip(row, members[:8, 0].tolist(), strict=True):
        axis.imshow(digits.train.inputs[i, 0], cmap="gray_r")
        axis.set_axis_off()
        axis.set_title(f"{word}: {int(digits.train.targets[i])}")

# %% [markdown]
# ## Microbatches of an untrained network
#
# A loss for each sample is all that gafscope asks for. `gs.gramian` gives the inner products of
# twelve gradients, one for each microbatch of twenty images, and leaves the model as it was.

# %%
torch.manual_seed(0)
model = gs.models.cnn(width=16)
loss = gs.supervised(cross_entropy)

order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(0))
microbatches = digits.train.batch(order[:240])

untrained = gs.gramian(model, loss, microbatches, microbatches=12)
untrained.plot()

# %% [markdown]
# The cosine distance is 0 where two gradients point the same way, 1 where they have nothing to do
# with each other, 2 where they are opposed. The untrained network's gradients agree: whatever the
# images, the first thing to learn is the same. The bars show the mean distance parameter by
# parameter. The first convolution, which sees the pixels, agrees least.
#
# ## Single images
#
# `microbatches=None`, the default, makes every sample a row. We take six images of each given label
# and let seaborn put those next to each other whose gradients agree. A black mark on the left says
# that the label is wrong.

# %%
by_label = [order[digits.train.targets[order] == label][:6] for label in range(10)]
chosen = torch.cat(by_label)
samples, given = digits.train.batch(chosen), digits.train.targets[chosen]
mislabelled = digits.train.flipped[chosen]
names = [
    f"{int(label)}, really {int(true)}" if label != true else str(int(label))
    for label, true in zip(given, digits.train.true_targets[chosen], strict=True)
]


def cluster(gram, title):
    distances = pd.DataFrame(gram.cosine_distance().numpy(), names, names)
    tree = linkage(squareform(distances.to_numpy(), checks=False), method="average")
    grid = sns.clustermap(
        distances,
        row_linkage=tree,
        col_linkage=tree,
        row_colors=["black" if wrong else "white" for wrong in mislabelled],
        cmap="RdBu_r",
        vmin=0,
        vmax=2,
        figsize=(8.5, 8.5),
        xticklabels=False,
        yticklabels=True,
        cbar_kws={"label": "cosine distance"},
        dendrogram_ratio=(0.12, 0.1),
        cbar_pos=(0.02, 0.91, 0.03, 0.08),
    )
    grid.ax_heatmap.tick_params(axis="y", labelsize=7)
    grid.figure.suptitle(title, x=0.55, y=1.01)


before = gs.gramian(model, loss, samples)
cluster(before, "untrained")

# %% [markdown]
# Blocks along the diagonal have one given label, right or wrong: the untrained network hardly looks
# at the image, so a gradient is little more than "make this class likelier".
#
# ## After some training
#
# Plain averaging, two microbatches of twenty a step. `gs.Trainer` goes on where it stood when it is
# asked for more steps.

# %%
trainer = gs.Trainer(
    model,
    loss,
    torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    aggregator=gs.Mean(),
    microbatches=2,
    progress=False,
)
sampler = gs.data.MicrobatchSampler(digits.train, microbatches=2, microbatch_size=20)


def accuracies():
    with torch.no_grad():
        shares = {
            name: (model(split.inputs).argmax(1) == split.targets).float().mean().item()
            for name, split in (("train", digits.train), ("test", digits.test))
        }
    return ", ".join(f"{name} accuracy {share:.0%}" for name, share in shares.items())


trainer.fit(sampler, steps=150)
print(accuracies())
trained = gs.gramian(model, loss, microbatches, microbatches=12)
trained.plot()

# %% [markdown]
# The test accuracy is high, and the train accuracy is about the share of right labels: the network
# has learned the digits, and hardly any wrong label yet. What all microbatches have in common is
# learned by then. What is left differs from microbatch to microbatch: the distances have risen
# towards 1, and some pairs even pull against each other. All layers are much alike in that.
#
# The single images again:

# %%
after_some = gs.gramian(model, loss, samples)
cluster(after_some, "after 150 steps")

# %% [markdown]
# There are still blocks of one given label, but the network has an opinion now, and a wrong label
# contradicts it. The mislabelled images stand at the paler edges of their blocks. Red shows whom
# they pull against: a zero that is called a nine is opposed to the zeros that are called zeros.
#
# ## After too much training
#
# Averaging goes on, until most wrong labels are learned by heart. The test accuracy pays for it.

# %%
trainer.fit(sampler, steps=2000)
print(accuracies())
memorised = gs.gramian(model, loss, microbatches, microbatches=12)
after_too_much = gs.gramian(model, loss, samples)
cluster(after_too_much, "after 2,000 steps")

# %% [markdown]
# The map has paled: nearly every image now asks for something of its own. Layer by layer, the mean
# distance of the microbatches:

# %%
stages = {
    "untrained": (untrained, before),
    "after 150 steps": (trained, after_some),
    "after 2,000 steps": (memorised, after_too_much),
}
layers = {
    stage: {
        name: found.value
        for name, found in gs.metrics.by_layer(gs.metrics.mean_distance, of_microbatches).items()
    }
    for stage, (of_microbatches, _) in stages.items()
}
pd.DataFrame(layers).round(2)

# %% [markdown]
# ## Which images disagree?
#
# For each image, the mean distance to the other images with the same given label. If wrong labels
# disagree, their points lie higher.

# %%
same = (given[:, None] == given) & ~torch.eye(len(given), dtype=torch.bool)
points = pd.concat(
    pd.DataFrame(
        {
            "stage": stage,
            "label": ["wrong" if wrong else "right" for wrong in mislabelled],
            "distance": (of_samples.cosine_distance() * same).sum(1) / same.sum(1),
        }
    )
    for stage, (_, of_samples) in stages.items()
)
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
sns.stripplot(points, x="stage", y="distance", hue="label", dodge=True, size=4, ax=axes)
axes.set(xlabel="", ylabel="mean cosine distance to the same label", ylim=(0, None))
axes.grid(axis="y", color="0.92")
points.groupby(["stage", "label"], sort=False)["distance"].mean().unstack().round(2)

# %% [markdown]
# After a little training the two kinds are nearly apart: an image that disagrees with the others of
# its label is worth a look. After too much they run together, since the network now fits the wrong
# labels too. So look early. It is a hint, not a proof: `python -m gafscope diagnose` ranks the
# samples of any model, beside the plain loss, which is the obvious competitor.
#
# ## Where to go from here
#
# - How near to 1 is "nothing in common"? That is the second notebook, on thresholds.
# - `gs.metrics.table(gram)` measures twenty kinds of agreement, most with an interval.
# - The same figures for a loop of yours: the last notebook.
