"""Networks: OrganNet2.5D, and the peers it is compared with."""
