"""Who may do what on the loopback Hub: tokens with their roles and scopes, private and gated repositories."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from loopback.faults import Entry
from loopback.store import HubError, Repo

if TYPE_CHECKING:
    from loopback.hub import LoopbackHub


@dataclass
class Call:
    """What a route gets: the hub, the request, and who asks (None: nobody we know)."""

    hub: "LoopbackHub"
    request: Request
    user: dict[str, Any] | None
    entry: Entry = field(repr=False)

    def repo(self, kind: str, repo_id: str, *, write: bool = False) -> Repo:
        """The repository if the caller may see it (or write to it); else the error with which the Hub hides it."""
        hidden = HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        try:
            repo = Repo(self.hub.root, kind, repo_id)
        except HubError:
            raise hidden from None
        if repo.state["private"] and not self.may("repo.content.read", repo_id):
            raise hidden
        if write:
            self.demand_write(repo_id)
        return repo

    def may(self, permission: str, entity: str) -> bool:
        """Whether the token has this permission on a repository or a namespace."""
        if self.user is None:
            return False
        namespace, reads = entity.split("/")[0], permission.endswith(".read")
        if self.user["role"] == "fineGrained":
            scopes = self.user["scopes"]
            granted = {*scopes.get(namespace, ()), *scopes.get(entity, ())}
            return permission in granted or (reads and f"{permission.split('.')[0]}.write" in granted)
        return namespace in (self.user["name"], *self.user["orgs"]) and (reads or self.user["role"] == "write")

    def demand_write(self, entity: str) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if self.user["role"] == "read":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository")
        if not self.may("repo.write", entity):
            raise HubError(403, f"You don't have the rights to write under the namespace {entity.split('/')[0]!r}")

    def demand_access(self, repo: Repo) -> None:
        """A gated repository shows its name to all, and its files to its owner."""
        if not repo.state["gated"] or self.may("repo.write", repo.id):
            return
        if self.user is None:
            raise HubError(401, f"Access to model {repo.id} is restricted. Please log in.", "GatedRepo")
        message = f"Access to model {repo.id} is restricted and you are not in the authorized list."
        raise HubError(403, message, "GatedRepo")

    async def json(self) -> Any:
        return await self.request.json()
