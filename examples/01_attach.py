"""Attach token-indexed parameters to a small model, train it, save it, load it, let it write.

python examples/01_attach.py [FOLDER]
"""

import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import retoken

TEXT = b"Peter Piper picked a peck of pickled peppers; where is the peck of pickled peppers he picked? "

torch.manual_seed(0)
folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()

# Any supported family will do. This one is tiny, and its 256 token ids are bytes, so it needs no tokenizer.
backbone = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4
)
model = AutoModelForCausalLM.from_config(backbone)

# MoRT: each token owns 5 rows in each layer, and a router mixes 3 of them into the residual stream (Eq. 3-6).
retoken.attach(model, retoken.MoRTConfig(num_modulators=5, top_k=3))

# Every parameter is in exactly one group, so that tables can have a rate and a decay of their own.
groups = retoken.param_groups(model)
print({role: sum(p.numel() for _, p in named) for role, named in groups.items()})
rates = {"backbone": 3e-3, "tables": 3e-3, "scales": 3e-3, "routers": 3e-3}
optimizer = torch.optim.AdamW(
    [{"params": [p for _, p in named], "lr": rates[role]} for role, named in groups.items() if named],
    weight_decay=0.0,
)

ids = torch.tensor([list(TEXT)] * 4)
for step in range(60):
    loss = model(input_ids=ids, labels=ids).loss  # the load-balancing loss (Eq. 21) is in it
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0 or step == 59:
        print(f"step {step:2d}  loss {loss.item():.3f}")

# Saved and loaded like any other model: `import retoken` is all that loading needs.
model.save_pretrained(folder)
loaded = AutoModelForCausalLM.from_pretrained(folder)
for layer, modulator in retoken.modulators(loaded).items():
    print(f"layer {layer}: mean scale {modulator.scale.mean().item():.3f}")

prompt = torch.tensor([list(b"Peter Piper")])
written = loaded.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
print(bytes(written[0].tolist()).decode())

# And off again: the backbone, its weights as they are now.
retoken.detach(loaded)
