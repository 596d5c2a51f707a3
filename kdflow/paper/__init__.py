"""The paper as build targets: tables.yaml -> cells -> DVC stages."""
