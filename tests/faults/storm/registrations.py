"""What is asked of the API meanwhile: a registration that was answered must be there, one that was refused is nobody's loss."""

from dataclasses import dataclass, field

from tests.faults.storm.scene import Scene

from toque.client import ClientError

PIN = "ninguem"  # nobody calls there, so that these URLs are sent nothing


@dataclass
class Registrations:
    """Those that were tried."""

    scene: Scene
    accepted: list[str] = field(default_factory=list)
    tried: int = 0

    def try_one(self) -> None:
        """Register a URL, whatever comes of it."""
        self.tried += 1
        url = self.scene.receiver.url(f"/registered/{self.tried}")
        try:
            self.scene.account.api().add_callback(url, PIN)
        except ClientError:
            self.scene.outcome.refused += 1
        else:
            self.accepted.append(url)

    def check(self) -> None:
        """Each one that was accepted is listed."""
        listed = {entry.url for entry in self.scene.account.api().list_callbacks()}
        if missing := set(self.accepted) - listed:
            self.scene.problem(f"registrations were acknowledged and are gone: {sorted(missing)}")
