"""Small random checkpoints with a real tokenizer, for what SmolLM2 has no head for; and LoRA adapters."""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

IMAGE_CHAT_TEMPLATE = """{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}\
{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}\
{% endfor %}{% endif %}
{% endfor %}assistant: """
LABELS = {0: "bad", 1: "so-so", 2: "good"}


def classifier(model, folder, num_labels):
    """A Llama of two layers that tells labels, or with one label scores pairs; tokenizer of `model`."""
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=transformers.AutoConfig.from_pretrained(model).vocab_size,
        max_position_embeddings=256,
        pad_token_id=2,
        num_labels=num_labels,
        **({"id2label": LABELS, "label2id": {label: at for at, label in LABELS.items()}} if num_labels > 1 else {}),
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model) / name, folder)


def adapter(model, folder, seed, rank=8):
    """A LoRA adapter with random weights, large enough to change answers."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.from_pretrained(model)
    out = {"q_proj": config.hidden_size, "v_proj": config.hidden_size // config.num_attention_heads}
    out["v_proj"] *= config.num_key_value_heads
    weights = {}
    for layer in range(config.num_hidden_layers):
        for name, size in out.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(rank, config.hidden_size) * 0.05
            weights[f"{key}.lora_B.weight"] = torch.randn(size, rank) * 0.05
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(weights, Path(folder) / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": list(out),
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
    }
    (Path(folder) / "adapter_config.json").write_text(json.dumps(settings))


def image_chat(model, folder):
    """A LLaVA of two layers each for eyes and words, which sees without understanding."""
    torch.manual_seed(3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sign = tokenizer.convert_tokens_to_ids("<image>")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = transformers.LlamaConfig(
        **shape, num_key_value_heads=1, vocab_size=sign + 1, max_position_embeddings=512, pad_token_id=2
    )
    eyes = transformers.CLIPVisionConfig(**shape, image_size=56, patch_size=14)
    config = transformers.LlavaConfig(
        vision_config=eyes, text_config=words, image_token_index=sign, vision_feature_layer=-1
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 56, "width": 56}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=size)
    processor = transformers.LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=IMAGE_CHAT_TEMPLATE,
    )  # fmt: skip
    processor.save_pretrained(folder)


if __name__ == "__main__":
    source, target = sys.argv[1], Path(sys.argv[2])
    classifier(source, target / "classifier", 3)
    classifier(source, target / "scorer", 1)
    adapter(source, target / "lora-a", 1)
    adapter(source, target / "lora-b", 2, rank=16)
    if "image" in sys.argv[3:]:  # needs torchvision
        image_chat(source, target / "vlm")
