"""Attach ReToken to a pretrained model and train nothing but its tables and scales.

python examples/02_pretrained.py MODEL TEXT_FILE OUT
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import retoken

name, text, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
retoken.attach(model, retoken.ReTokenConfig(init_scale=0.0))  # scale 0: starts as the model it was
groups = retoken.param_groups(model)
for _, parameter in groups["backbone"]:
    parameter.requires_grad_(False)
optimizer = torch.optim.AdamW([p for role in ("tables", "scales") for _, p in groups[role]], lr=1e-2)
ids = tokenizer(Path(text).read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :512]
for step in range(10):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}  loss {loss.item():.4f}")
model.save_pretrained(out)
tokenizer.save_pretrained(out)
