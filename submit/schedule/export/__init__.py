"""A schedule, or a job, as what other systems read: KubeRay, cron, systemd, GitHub Actions and Airflow."""
