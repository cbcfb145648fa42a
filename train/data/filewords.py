"""Prompts of concepts, by the rules of A1111's DreamBooth extension (`FilenameTextGetter`)."""

import re

from train.concept_config import FILEWORDS, ConceptConfig

NUMBERS_AT_START = re.compile(r"^[-\d]+\s*")


def words_of_name(stem: str) -> str:
    """A file's name as a caption: without digits and dashes at its front."""
    return NUMBERS_AT_START.sub("", stem)


def instance_prompt(concept: ConceptConfig, filewords: str) -> str:
    """The prompt of a picture of the subject, whose caption is `filewords`.

    A class word without the subject (`a dog`, `the dog`, `dog`) becomes the subject's; where there
    is neither, the subject is written before the prompt.
    """
    text = concept.instance_prompt.replace(FILEWORDS, filewords)
    subject, kind = concept.instance_token, concept.class_token
    if subject and kind:
        if not _says(text, subject):
            if _says(text, kind):
                text = _replaced(text, rf"(?:(?:a|an|the)\s+)?{re.escape(kind)}", subject)
            else:
                text = _before(subject, text)
    elif subject:
        text = _before(subject, text)
    return _tidy(text)


def class_prompt(concept: ConceptConfig, filewords: str) -> str:
    """The prompt of a picture of the class, made of a caption of the subject's.

    The subject's word is taken out, or becomes the class's where that is not there yet; where
    there is neither, the class is written before the prompt.
    """
    text = concept.class_prompt.replace(FILEWORDS, filewords)
    subject, kind = concept.instance_token, concept.class_token
    if subject and kind:
        without = _replaced(text, re.escape(subject), "")
        if _says(text, subject):
            text = without if _says(without, kind) else _replaced(text, re.escape(subject), kind)
        if not _says(text, kind):
            text = _before(kind, text)
    elif kind:
        text = _before(kind, text)
    return _tidy(text)


def _says(text: str, words: str) -> bool:
    return re.search(_whole(re.escape(words)), text, re.IGNORECASE) is not None


def _replaced(text: str, pattern: str, words: str) -> str:
    return re.sub(_whole(pattern), lambda _: words, text, flags=re.IGNORECASE)


def _whole(pattern: str) -> str:
    """The pattern where no longer word begins or ends with it."""
    return rf"(?<!\w){pattern}(?!\w)"


def _before(word: str, text: str) -> str:
    return f"{word}, {text}" if text.strip() else word


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("\\", "").strip()
