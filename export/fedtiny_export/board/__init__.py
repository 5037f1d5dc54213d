"""Boards, firmware projects, and planned beside measured memory."""
