from rayferry.job.generating import _with_images


def test_images_go_before_the_text_of_the_last_message_of_the_user():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    parts = [{"type": "image_pil", "image_pil": "PICTURE"}, {"type": "text", "text": "c"}]
    assert _with_images(chat, ("PICTURE",)) == [*chat[:2], {"role": "user", "content": parts}]


def test_images_without_a_message_of_the_user_become_one():
    part = {"type": "image_pil", "image_pil": "PICTURE"}
    system = {"role": "system", "content": "a"}
    assert _with_images([system], ("PICTURE",)) == [system, {"role": "user", "content": [part]}]
