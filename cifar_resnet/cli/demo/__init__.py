"""The demo in the browser: `views` computes, `drawing` draws, `page` is the Gradio page."""
