"""From source to a supervised process: the zygote, the service process, its link, and the supervisor."""
