"""What the notebooks measure and say, a module a topic: frames in, frames and sentences out."""
