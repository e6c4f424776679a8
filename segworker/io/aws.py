"""Credentials, endpoint and region as every AWS tool finds them, in the words of each client used here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError

from segworker.errors import StorageError

DEFAULT_REGION = "us-east-1"
_REFRESH = timedelta(minutes=5)
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AwsAccess:
    """How to reach S3 from this process. It holds secrets: never pickled, logged or recorded."""

    credentials: Credentials | None
    "None: requests are not signed."
    region: str
    endpoint_url: str | None
    "Scheme, host and port of a store that is not AWS."

    @property
    def allow_http(self) -> bool:
        """Whether plain HTTP is meant."""
        return bool(self.endpoint_url and self.endpoint_url.startswith("http://")) or _flag("AWS_ALLOW_HTTP")

    @property
    def virtual_hosts(self) -> bool:
        """Whether the bucket is part of the host name (AWS), or of the path (MinIO, SeaweedFS)."""
        default = self.endpoint_url is None or urlsplit(self.endpoint_url).netloc.endswith("amazonaws.com")
        return _flag("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", default=default)

    def s3_config(self) -> dict[str, Any]:
        """Return the configuration of obstore's S3Store, without credentials."""
        config: dict[str, Any] = {"region": self.region, "skip_signature": self.credentials is None}
        if self.endpoint_url:
            config |= {"endpoint": self.endpoint_url, "virtual_hosted_style_request": False}
        return config

    def credential_provider(self) -> Callable[[], dict[str, Any]] | None:
        """Return a callable that gives obstore fresh credentials for five minutes at a time."""
        credentials = self.credentials
        if credentials is None:
            return None

        def provide() -> dict[str, Any]:
            frozen = credentials.get_frozen_credentials()
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": datetime.now(UTC) + _REFRESH,
            }

        return provide

    def delta_options(self) -> dict[str, str]:
        """Return deltalake's storage options, with the credentials as they are now."""
        options = {"AWS_REGION": self.region, "conditional_put": "etag"}
        if self.endpoint_url:
            options |= {"AWS_ENDPOINT_URL": self.endpoint_url, "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false"}
        if self.allow_http:
            options["AWS_ALLOW_HTTP"] = "true"
        if self.credentials is None:
            return options | {"AWS_SKIP_SIGNATURE": "true"}
        frozen = self.credentials.get_frozen_credentials()
        options |= {"AWS_ACCESS_KEY_ID": str(frozen.access_key), "AWS_SECRET_ACCESS_KEY": str(frozen.secret_key)}
        return options | ({"AWS_SESSION_TOKEN": frozen.token} if frozen.token else {})


def resolve_access() -> AwsAccess:
    """Find credentials (profile, SSO, session token, environment, instance role), region and endpoint.

    Requests are anonymous with AWS_NO_SIGN_REQUEST=YES, and where no credentials are found. A profile that does not
    exist or cannot be used is a StorageError.
    """
    try:
        session = boto3.Session()
        anonymous = _flag("AWS_NO_SIGN_REQUEST") or _flag("AWS_SKIP_SIGNATURE")
        credentials = None if anonymous else session.get_credentials()
        if credentials is not None:
            credentials.get_frozen_credentials()
        profile = session._session.get_scoped_config()  # noqa: SLF001 - boto3 has no public view of the profile
    except BotoCoreError as error:
        raise StorageError(
            f"AWS credentials must be usable, got {error}; check AWS_PROFILE and log in again, "
            "or set AWS_NO_SIGN_REQUEST=YES for public data"
        ) from None
    region = os.environ.get("AWS_REGION") or session.region_name or DEFAULT_REGION
    return AwsAccess(credentials, region, _endpoint(profile))


def gdal_env(access: AwsAccess | None = None) -> dict[str, str]:
    """Return GDAL options for reading s3:// (no secrets among them); give them to `rasterio.Env`."""
    access = access or resolve_access()
    options = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "AWS_VIRTUAL_HOSTING": "TRUE" if access.virtual_hosts else "FALSE",
        "AWS_HTTPS": "NO" if access.allow_http else "YES",
        "GDAL_HTTP_MAX_RETRY": "5",
        "GDAL_HTTP_RETRY_DELAY": "0.5",
        "GDAL_HTTP_CONNECTTIMEOUT": "5",
        "GDAL_HTTP_LOW_SPEED_TIME": "30",
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    }
    return options | ({"AWS_NO_SIGN_REQUEST": "YES"} if access.credentials is None else {})


def rasterio_session(access: AwsAccess | None = None) -> Any:  # noqa: ANN401 - rasterio ships no types
    """Return the rasterio session with the same credentials: `rasterio.Env(session=..., **gdal_env())`."""
    from rasterio.session import AWSSession  # noqa: PLC0415 - GDAL is heavy; only readers of rasters need it

    access = access or resolve_access()
    endpoint = urlsplit(access.endpoint_url).netloc if access.endpoint_url else None
    if access.credentials is None:
        return AWSSession(aws_unsigned=True, region_name=access.region, endpoint_url=endpoint)
    frozen = access.credentials.get_frozen_credentials()
    return AWSSession(
        aws_access_key_id=frozen.access_key,
        aws_secret_access_key=frozen.secret_key,
        aws_session_token=frozen.token,
        region_name=access.region,
        endpoint_url=endpoint,
    )


def _endpoint(profile: dict[str, Any]) -> str | None:
    if _flag("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        return None
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    named = next((os.environ[name] for name in names if os.environ.get(name)), None)
    url = named or (profile.get("s3") or {}).get("endpoint_url") or profile.get("endpoint_url")
    if not url:
        return None
    return str(url if "://" in url else f"https://{url}").rstrip("/")


def _flag(name: str, *, default: bool = False) -> bool:
    value = os.environ.get(name, "")
    return value.lower() in _TRUE if value else default
