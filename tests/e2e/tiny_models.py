"""Small random checkpoints with a real tokenizer, for what SmolLM2 has no head for; and LoRA adapters."""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

IMAGE_CHAT_TEMPLATE = """{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}\
{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}
{% endfor %}assistant: """
LABELS = {0: "bad", 1: "so-so", 2: "good"}


def classifier(model, folder, num_labels):
    """A Llama of two layers that tells labels, or with one label scores pairs; tokenizer of `model`."""
    labels = {"id2label": LABELS, "label2id": {label: at for at, label in LABELS.items()}} if num_labels > 1 else {}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_labels": num_labels}
    _llama(transformers.LlamaForSequenceClassification, model, folder, **heads, **labels)


def generator(model, folder):
    """A Llama of two layers that generates, whose heads two workers can share; tokenizer of `model`."""
    _llama(transformers.LlamaForCausalLM, model, folder, num_attention_heads=4, num_key_value_heads=2)


def _llama(kind, model, folder, **options):
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        vocab_size=transformers.AutoConfig.from_pretrained(model).vocab_size,
        max_position_embeddings=256,
        pad_token_id=2,
        **options,
    )
    kind(config).save_pretrained(folder)
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
    """A Qwen2-VL of two layers each for eyes and words, which sees without understanding."""
    torch.manual_seed(3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    signs = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": signs})
    begin, end, image, video = tokenizer.convert_tokens_to_ids(signs)
    words = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default", "type": "mrope", "mrope_section": [16, 8, 8], "rope_theta": 10000.0
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    eyes = {"depth": 2, "embed_dim": 128, "num_heads": 2, "hidden_size": 128, "patch_size": 14, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(
        text_config=words, vision_config=eyes, image_token_id=image, video_token_id=video,
        vision_start_token_id=begin, vision_end_token_id=end,
    )  # fmt: skip
    transformers.Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=IMAGE_CHAT_TEMPLATE,
    ).save_pretrained(folder)


if __name__ == "__main__":
    source, target = sys.argv[1], Path(sys.argv[2])
    classifier(source, target / "classifier", 3)
    classifier(source, target / "scorer", 1)
    adapter(source, target / "lora-a", 1)
    adapter(source, target / "lora-b", 2, rank=16)
    if "image" in sys.argv[3:]:  # needs torchvision
        image_chat(source, target / "vlm")
