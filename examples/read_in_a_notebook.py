"""Read an archive and draw figure 3. Notebook editors run each part below `# %%` as a cell.

python examples/read_in_a_notebook.py NAME.zarr FIGURE.pdf
"""

# %% Open an archive: a folder, or http://HOST:PORT/v1/archives/NAME/zarr
import sys

import numpy as np

import sparcom_analysis as sp

path, figure = sys.argv[1:] if len(sys.argv) == 3 else ("run.zarr", "similarity.pdf")
archive = sp.open_archive(path)
print(archive)

# %% Masks of the first 10 tokens: bool (token, layer, neuron)
packed = archive.read_active(0, 10)  # uint8 (token, layer, neuron_byte)
masks = np.unpackbits(packed, axis=-1, bitorder="little", count=archive.attributes.model.neurons).astype(bool)
print(f"{masks.mean():.1%} of the neurons are active")

# %% ISNs of every instruction (equation 7): bool (layer, neuron) each
isn = sp.find_isns(archive, top=0.05)
first = archive.instructions.id[0]
print(first, "has", int(isn[first].sum()), "ISNs")

# %% Similarity of categories (equation 10), with confidence intervals and p-values
similarity = sp.similarity(isn)
print(similarity["value"].sel(self_pairs=True).to_pandas().round(3))
sp.plot.save(sp.plot.similarity(similarity), figure)
