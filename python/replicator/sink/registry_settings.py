"""How a schema registry is reached, and what may be done there."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from replicator.settings import Settings
from replicator.sink.tls import TLSConfig

SubjectNames = Literal["topic_name", "record_name", "topic_record_name"]


class RegistryConfig(Settings):
    """A schema registry with Confluent's API."""

    url: str = Field(description="http:// or https://; several by commas, the next when one fails.")
    username: str = Field("", pattern="^[^:]*$", description="Of basic authentication; an API key.")
    password: SecretStr = Field(SecretStr(""), description="Best from PASSWORD_FILE.")
    token: SecretStr = Field(SecretStr(""), description="Bearer token instead, from TOKEN_FILE.")
    tls: TLSConfig | None = Field(None, description="Authorities and certificate of https.")
    subject_name_strategy: SubjectNames = Field(
        "topic_name",
        description="Names of subjects, as Confluent's strategies: <topic>-value, the record's "
        "name, or <topic>-<record's name>.",
    )
    namespace: str = Field(
        "replicator",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$",
        description="Records are <namespace>.<table>.Change and .Item.",
    )
    auto_register: bool = Field(
        default=True,
        description="Register schemas that are missing; else the subject's newest is written by.",
    )
    columns_max: int = Field(
        300,
        ge=0,
        le=1_500,
        description="Attributes of a table that get a field of their own; others are in extra.",
    )
    request_timeout_seconds: float = Field(10.0, gt=0, le=120, description="Of one request.")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        for url in value.split(","):
            if not re.fullmatch(r"https?://[^/@?#]+(/[^@?#]*)?", url.strip()):
                raise ValueError(
                    "https://host:port is wanted, several by commas; a name and a password "
                    "stand in username and password"
                )
        return value

    @model_validator(mode="after")
    def _signs_in_one_way(self) -> RegistryConfig:
        has_password = bool(self.password.get_secret_value())
        if bool(self.username) != has_password:
            raise ValueError("username and password go together")
        if has_password and self.token.get_secret_value():
            raise ValueError("either username and password, or token")
        if not self.token.get_secret_value().isprintable():
            raise ValueError("token is one line")
        return self

    @property
    def urls(self) -> list[str]:
        """Each address, without a slash at its end."""
        return [url.strip().rstrip("/") for url in self.url.split(",")]

    def subject(self, topic: str, record: str) -> str:
        """The subject of values. https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#subject-name-strategy"""
        match self.subject_name_strategy:
            case "topic_name":
                return f"{topic}-value"
            case "record_name":
                return record
            case "topic_record_name":
                return f"{topic}-{record}"
