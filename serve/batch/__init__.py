"""Files of requests in, a file of results out: the OpenAI API's batches, without a server."""
